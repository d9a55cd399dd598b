// y = (x - mean_g) / sqrt(var_g + eps) * weight_c + bias_c, then the activation, in one dispatch with no tensor between
// (Chen et al. 2023, section 3.2.1). One workgroup takes one group of one image. Per element it reads x three times, the
// last two from cache where the group fits there (sum; squares about the mean; result), and writes out once.
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

@compute @workgroup_size(WORKGROUP_SIZE)
fn group_norm(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
    let group_parts = params.group_channels / WIDTH; // of one pixel
    let pixel_parts = params.channels / WIDTH;
    let first = id.y * params.pixels * pixel_parts + id.x * group_parts;
    let size = params.pixels * group_parts;
    let count = f32(params.pixels * params.group_channels);

    var sum = PartF32();
    for (var i = lane; i < size; i += WORKGROUP_SIZE) {
        sum += PartF32(x[first + (i / group_parts) * pixel_parts + i % group_parts]);
    }
    let mean = row_sum(part_sum(sum), lane) / count;

    var squares = PartF32();
    for (var i = lane; i < size; i += WORKGROUP_SIZE) {
        let d = PartF32(x[first + (i / group_parts) * pixel_parts + i % group_parts]) - mean;
        squares += d * d;
    }
    let variance = row_sum(part_sum(squares), lane) / count;

    let scale = inverseSqrt(variance + params.eps);
    for (var i = lane; i < size; i += WORKGROUP_SIZE) {
        let at = first + (i / group_parts) * pixel_parts + i % group_parts;
        let c = id.x * group_parts + i % group_parts;
        out[at] = Part(part_activation((PartF32(x[at]) - mean) * scale * PartF32(weight[c]) + PartF32(bias[c])));
    }
}
