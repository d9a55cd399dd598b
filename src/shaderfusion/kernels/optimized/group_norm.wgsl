// y = (x - mean_g) / sqrt(var_g + eps) * weight_c + bias_c, then the activation, in one dispatch with no tensor between
// (Chen et al. 2023, section 3.2.1). One workgroup reads one group of one image and writes every SHARES-th of its parts.
// With CACHED its lanes keep the group in registers, TURNS parts each, so that per element x is read SHARES times and
// out written once; without, it reads x three times (sum; squares about the mean; result), the last two from cache where
// the group fits there.
#import fragments/activation
#import fragments/reduce

const STEP = WORKGROUP_SIZE / GROUP_PARTS;

#ifdef WIDTH_4
alias Part = vec4<Elem>;
alias PartF32 = vec4<f32>;
const WIDTH = 4u;
fn part_sum(x: PartF32) -> f32 { return x.x + x.y + x.z + x.w; }
fn part_activation(x: PartF32) -> PartF32 {
    return PartF32(activation(x.x), activation(x.y), activation(x.z), activation(x.w));
}
#elif WIDTH_2
alias Part = vec2<Elem>;
alias PartF32 = vec2<f32>;
const WIDTH = 2u;
fn part_sum(x: PartF32) -> f32 { return x.x + x.y; }
fn part_activation(x: PartF32) -> PartF32 { return PartF32(activation(x.x), activation(x.y)); }
#elif WIDTH_1
alias Part = Elem;
alias PartF32 = f32;
const WIDTH = 1u;
fn part_sum(x: PartF32) -> f32 { return x; }
fn part_activation(x: PartF32) -> PartF32 { return activation(x); }
#endif

@group(0) @binding(1) var<storage, read> x: array<Part>;         // (B, P, C)
@group(0) @binding(2) var<storage, read> weight: array<Part>;    // (C)
@group(0) @binding(3) var<storage, read> bias: array<Part>;      // (C)
@group(0) @binding(4) var<storage, read_write> out: array<Part>; // (B, P, C)

@compute @workgroup_size(WORKGROUP_SIZE)
fn group_norm(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
    // A lane takes one part, GROUP_PARTS of which make a pixel's channels in the group, of every STEP-th pixel.
    let pixel_parts = params.channels / WIDTH;
    let part = id.x * GROUP_PARTS + lane % GROUP_PARTS;
    let first = lane / GROUP_PARTS;
    let end = select(0, params.pixels, first < STEP); // lanes left over take none
    let start = (id.y * params.pixels + first) * pixel_parts + part;
    let stride = STEP * pixel_parts;
    let count = f32(params.pixels * GROUP_PARTS * WIDTH);

    var sum = PartF32();
    var squares = PartF32();
#ifdef CACHED
    var parts: array<PartF32, TURNS>;
#unroll
    for (var t = 0u; t < TURNS; t++) {
        if (first + t * STEP < end) { parts[t] = PartF32(x[start + t * stride]); }
    }
#unroll
    for (var t = 0u; t < TURNS; t++) {
        sum += parts[t];
    }
    let mean = row_sum(part_sum(sum), lane) / count;
#unroll
    for (var t = 0u; t < TURNS; t++) {
        let d = parts[t] - mean;
        if (first + t * STEP < end) { squares += d * d; }
    }
#else
    for (var t = 0u; first + t * STEP < end; t++) { sum += PartF32(x[start + t * stride]); }
    let mean = row_sum(part_sum(sum), lane) / count;
    for (var t = 0u; first + t * STEP < end; t++) {
        let d = PartF32(x[start + t * stride]) - mean;
        squares += d * d;
    }
#endif
    let scale = inverseSqrt(row_sum(part_sum(squares), lane) / count + params.eps) * PartF32(weight[part]);
    let shift = PartF32(bias[part]);
#ifdef CACHED
#unroll
    for (var t = 0u; t < TURNS; t++) {
        if (first + t * STEP < end && t % SHARES == id.z) {
            out[start + t * stride] = Part(part_activation((parts[t] - mean) * scale + shift));
        }
    }
#else
    for (var t = id.z; first + t * STEP < end; t += SHARES) {
        let value = PartF32(x[start + t * stride]);
        out[start + t * stride] = Part(part_activation((value - mean) * scale + shift));
    }
#endif
}
