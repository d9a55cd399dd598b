// A weight as its file stores it to the kernels' layout and dtype: out[t, I(i), O(o)] = source[o, i, t], zeros elsewhere,
// where channel d of part p, of size D, goes to place p D' + d (heads padded from D to D' channels; else one part).
// An invocation takes 4 neighbouring places of output channels, CHANNELS of input channels, which begin with a word where
// those are more than one, and all taps t. NaN and overflow are found by bits, as shaders may assume that there is no NaN.
// Reads each word and writes each element once.

@group(0) @binding(1) var<storage, read> words: array<u32>;               // (O, I, T) from first_channel on
@group(0) @binding(2) var<storage, read_write> out: array<vec4<Elem>>;    // (T, I', ceil(O' / 4))
@group(0) @binding(3) var<storage, read_write> flags: array<atomic<u32>>; // one for each weight

const NOT_FINITE = 1u;
const OVER_F16 = 2u;

// The bits of a value as f32, which holds it exactly, from the word that has it at its bit `shift`.
fn decode(word: u32, shift: u32) -> u32 {
#ifdef STORED_F32
    return word;
#elif STORED_BF16
    return (word >> shift) << 16;
#elif STORED_F8_E4M3
    let bits = word >> shift;
    let sign = (bits & 0x80) << 24;
    let magnitude = bits & 0x7f;
    if (magnitude == 0x7f) { return sign | 0x7fc00000; } // NaN, and there is no infinity: Micikevicius et al. 2022
    if (magnitude < 0x08) { return sign | bitcast<u32>(f32(magnitude) * 0x1p-9f); } // 0 and subnormal
    return sign | ((magnitude << 20) + (120 << 23)); // of exponents: 127 - 7
#else
#ifdef STORED_F8_E5M2
    let bits = (word >> shift) << 8; // the upper half of an f16
#else
    let bits = word >> shift;
#endif
    let sign = (bits & 0x8000) << 16;
    let magnitude = bits & 0x7fff;
    if (magnitude < 0x0400) { return sign | bitcast<u32>(f32(magnitude) * 0x1p-24f); } // 0 and subnormal
    let bias = select(224u, 112u, magnitude < 0x7c00); // of exponents: 127 - 15, and 255 - 31 of what is not finite
    return sign | ((magnitude << 13) + (bias << 23));
#endif
}

fn flag(bits: u32) -> u32 {
    let magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x7f800000) { return NOT_FINITE; }
    return select(0u, OVER_F16, magnitude >= 0x477ff000); // 65520 rounds to 65536
}

@compute @workgroup_size(OUT_LANES, IN_LANES)
fn prepare_weight(@builtin(global_invocation_id) id: vec3u) {
    let place = params.first_place + 4 * id.x;
    let in_place = CHANNELS * id.y;
    if (place >= params.end_place || in_place >= params.in_places) { return; }
    let d_out = place % params.out_part_places;
    let d_in = in_place % params.in_part_places;
    let o = place / params.out_part_places * params.out_part_channels + d_out - params.first_channel;
    let i = in_place / params.in_part_places * params.in_part_channels + d_in;
    let end = select(0u, params.out_part_channels, d_in < params.in_part_channels); // of d_out, zeros from there on
    let row = params.in_channels * params.taps;
    let column = params.out_first / 4 + id.x;
    var element = vec4u(0, 1, 2, 3) * row + (o * row + i * params.taps); // of the 4 output channels
    var channel = in_place; // and tap, where it goes
    var t = 0u;
    var found = 0u;
    for (var n = 0u; n < params.taps; n++) {
        var word: vec4u;
        for (var k = 0u; k < 4; k++) {
            if (d_out + k < end) { word[k] = words[element[k] / PER_WORD]; }
        }
        for (var c = 0u; c < CHANNELS; c++) {
            let shift = (32 / PER_WORD) * (element % PER_WORD);
            var value: vec4u;
            for (var k = 0u; k < 4; k++) {
                value[k] = decode(word[k], shift[k]);
                found |= flag(value[k]);
            }
            out[(t * params.in_places + channel) * params.out_row + column] = vec4<Elem>(bitcast<vec4f>(value));
            element += 1;
            t++;
            if (t == params.taps) {
                t = 0;
                channel++;
            }
        }
    }
    if (found != 0) { atomicOr(&flags[params.weight], found); }
}
