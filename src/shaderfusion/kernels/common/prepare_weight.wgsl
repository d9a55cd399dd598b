// A weight as its file stores it to the kernels' layout and dtype: out[t, I(i), O(o)] = source[o, i, t], zeros elsewhere,
// where channel d of part p, of size D, goes to place p D' + d (heads padded from D to D' channels; else one part).
// An invocation takes 4 neighbouring places of output channels, one of input channels, and all taps t. It looks for NaN
// and overflow by bits, as shaders may assume that there is no NaN. Reads and writes each element once.

@group(0) @binding(1) var<storage, read> words: array<u32>;               // rows (I, T) of O, from first_channel on
@group(0) @binding(2) var<storage, read_write> out: array<vec4<Elem>>;    // (T, I', ceil(O' / 4))
@group(0) @binding(3) var<storage, read_write> flags: array<atomic<u32>>; // one for each weight

const NOT_FINITE = 1u;
const OVER_F16 = 2u;

// The bits of a stored element as f32, which holds it exactly.
fn stored(element: u32) -> u32 {
#ifdef STORED_F32
    return words[element];
#else
    let bits = (words[element / 2] >> (16 * (element % 2))) & 0xffff;
#ifdef STORED_BF16
    return bits << 16;
#else
    let sign = (bits & 0x8000) << 16;
    let magnitude = bits & 0x7fff;
    if (magnitude < 0x0400) { return sign | bitcast<u32>(f32(magnitude) * 0x1p-24f); } // 0 and subnormal
    let is_finite = magnitude < 0x7c00;
    return sign | ((magnitude << 13) + select(224u, 112u, is_finite) << 23); // from exponents of bias 15 to 127
#endif
#endif
}

fn flag(bits: u32) -> u32 {
    let magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x7f800000) { return NOT_FINITE; }
    return select(0u, OVER_F16, magnitude >= 0x477ff000); // 65520 rounds to 65536
}

@compute @workgroup_size(OUT_LANES, IN_LANES)
fn prepare_weight(@builtin(global_invocation_id) id: vec3u) {
    let place = params.first_place + 4 * id.x; // of O', the first of 4
    if (place >= params.end_place || id.y >= params.in_places) { return; }
    let d_out = place % params.out_part_places;
    let d_in = id.y % params.in_part_places;
    let o = place / params.out_part_places * params.out_part_channels + d_out - params.first_channel;
    let i = id.y / params.in_part_places * params.in_part_channels + d_in;
    let end = select(0u, params.out_part_channels, d_in < params.in_part_channels); // zeros from there on
    let row = params.in_channels * params.taps;
    var found = 0u;
    for (var t = 0u; t < params.taps; t++) {
        var value: vec4f;
        for (var k = 0u; k < 4; k++) {
            if (d_out + k < end) {
                let bits = stored((o + k) * row + i * params.taps + t);
                found |= flag(bits);
                value[k] = bitcast<f32>(bits);
            }
        }
        out[(t * params.in_places + id.y) * params.out_row + params.out_first / 4 + id.x] = vec4<Elem>(value);
    }
    if (found != 0) { atomicOr(&flags[params.weight], found); }
}
