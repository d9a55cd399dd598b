// y = (x - mean_g) / sqrt(var_g + eps) * weight_c + bias_c, then the activation, in one dispatch with no tensor between
// (Chen et al. 2023, section 3.2.1). One workgroup takes one group of one image. With CACHED its lanes keep the group in
// registers, TURNS parts each, so that per element x is read once and out written once; without, it reads x three times
// (sum; squares about the mean; result), the last two from cache where the group fits there.
#import fragments/activation
#import fragments/reduce

#ifdef WIDTH_4
alias Part = vec4<Elem>;
alias PartF32 = vec4<f32>;
const WIDTH = 4u;
fn part_sum(x: PartF32) -> f32 { return x.x + x.y + x.z + x.w; }
fn part_activation(x: PartF32) -> PartF32 {
    return PartF32(activation(x.x), activation(x.y), activation(x.z), activation(x.w));
}
#else
#ifdef WIDTH_2
alias Part = vec2<Elem>;
alias PartF32 = vec2<f32>;
const WIDTH = 2u;
fn part_sum(x: PartF32) -> f32 { return x.x + x.y; }
fn part_activation(x: PartF32) -> PartF32 { return PartF32(activation(x.x), activation(x.y)); }
#else
alias Part = Elem;
alias PartF32 = f32;
const WIDTH = 1u;
fn part_sum(x: PartF32) -> f32 { return x; }
fn part_activation(x: PartF32) -> PartF32 { return activation(x); }
#endif
#endif

@group(0) @binding(1) var<storage, read> x: array<Part>;         // (B, P, C)
@group(0) @binding(2) var<storage, read> weight: array<Part>;    // (C)
@group(0) @binding(3) var<storage, read> bias: array<Part>;      // (C)
@group(0) @binding(4) var<storage, read_write> out: array<Part>; // (B, P, C)

// The place in x of the i-th of the group's parts; a pixel has group_parts of them.
fn place(id: vec3u, i: u32) -> u32 {
    let group_parts = params.group_channels / WIDTH;
    let pixel = id.y * params.pixels + i / group_parts;
    return pixel * (params.channels / WIDTH) + id.x * group_parts + i % group_parts;
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn group_norm(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
    let group_parts = params.group_channels / WIDTH;
    let size = params.pixels * group_parts;
    let count = f32(params.pixels * params.group_channels);
    var sum = PartF32();
    var squares = PartF32();
#ifdef CACHED
    var parts: array<PartF32, TURNS>;
    for (var t = 0u; t < TURNS; t++) {
        let i = lane + t * WORKGROUP_SIZE;
        if (i < size) { parts[t] = PartF32(x[place(id, i)]); }
        sum += parts[t];
    }
    let mean = row_sum(part_sum(sum), lane) / count;
    for (var t = 0u; t < TURNS; t++) {
        let d = parts[t] - mean;
        if (lane + t * WORKGROUP_SIZE < size) { squares += d * d; }
    }
#else
    for (var i = lane; i < size; i += WORKGROUP_SIZE) { sum += PartF32(x[place(id, i)]); }
    let mean = row_sum(part_sum(sum), lane) / count;
    for (var i = lane; i < size; i += WORKGROUP_SIZE) {
        let d = PartF32(x[place(id, i)]) - mean;
        squares += d * d;
    }
#endif
    let scale = inverseSqrt(row_sum(part_sum(squares), lane) / count + params.eps);
#ifdef CACHED
    for (var t = 0u; t < TURNS; t++) {
#else
    for (var t = 0u; t * WORKGROUP_SIZE < size; t++) {
#endif
        let i = lane + t * WORKGROUP_SIZE;
        if (i < size) {
            let at = place(id, i);
            let c = id.x * group_parts + i % group_parts;
#ifdef CACHED
            let value = parts[t];
#else
            let value = PartF32(x[at]);
#endif
            out[at] = Part(part_activation((value - mean) * scale * PartF32(weight[c]) + PartF32(bias[c])));
        }
    }
}
