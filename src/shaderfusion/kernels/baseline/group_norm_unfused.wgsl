// y = (x - mean_g) / sqrt(var_g + eps) * weight_c + bias_c (Wu and He, arXiv 1803.08494), a dispatch per step: what the
// one-dispatch group norm replaces. The image's P pixels are cut into S slices. sum_channels, sum_squares: an
// invocation adds one chunk of channels over one slice, so that neighbours read neighbouring memory. mean, variance:
// a workgroup adds one group's S C/G partial sums. normalize_channels: an invocation writes one chunk.
// In all, x is read three times and out written once, beside what the activation that follows reads and writes, unless
// it is folded into normalize_channels.
#import fragments/indexing
#import fragments/normalize
#import fragments/reduce

@group(0) @binding(1) var<storage, read> x: array<Chunk>; // (B, P, C), in all but mean and variance

// sum_channels
@group(0) @binding(2) var<storage, read_write> sums_out: array<ChunkF32>; // (B, S, C)

// mean and variance
@group(0) @binding(1) var<storage, read> partials: array<f32>;            // (B, S, C)
@group(0) @binding(2) var<storage, read_write> average_out: array<f32>;   // (B, G)

// sum_squares and normalize_channels
@group(0) @binding(2) var<storage, read> means: array<f32>;                  // (B, G)
@group(0) @binding(3) var<storage, read_write> squares_out: array<ChunkF32>; // (B, S, C)
@group(0) @binding(3) var<storage, read> variances: array<f32>;              // (B, G)
@group(0) @binding(4) var<storage, read> weight: array<Chunk>;               // (C)
@group(0) @binding(5) var<storage, read> bias: array<Chunk>;                 // (C)
@group(0) @binding(6) var<storage, read_write> out: array<Chunk>;            // (B, P, C)

@compute @workgroup_size(WORKGROUP_SIZE)
fn sum_channels(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                @builtin(local_invocation_index) lane: u32) {
    let chunks = params.channels / CHUNK;
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane; // of (B, S, C / CHUNK)
    if (i >= params.batch * params.slices * chunks) { return; }
    let b = i / (params.slices * chunks);
    let start = i / chunks % params.slices * params.slice_pixels;
    var sums = ChunkF32();
    for (var p = start; p < min(start + params.slice_pixels, params.pixels); p++) {
        sums += ChunkF32(x[(b * params.pixels + p) * chunks + i % chunks]);
    }
    sums_out[i] = sums;
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn sum_squares(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
               @builtin(local_invocation_index) lane: u32) {
    let chunks = params.channels / CHUNK;
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane; // of (B, S, C / CHUNK)
    if (i >= params.batch * params.slices * chunks) { return; }
    let b = i / (params.slices * chunks);
    let start = i / chunks % params.slices * params.slice_pixels;
    let mean = mean_of(groups_of(b, i % chunks));
    var squares = ChunkF32();
    for (var p = start; p < min(start + params.slice_pixels, params.pixels); p++) {
        let centered = ChunkF32(x[(b * params.pixels + p) * chunks + i % chunks]) - mean;
        squares += centered * centered;
    }
    squares_out[i] = squares;
}

// The sum over a group's partial sums, divided by how many values of x they stand for.
fn average(bg: u32, lane: u32) -> f32 {
    let channels = params.group_channels;
    let first = bg / params.num_groups * params.slices * params.channels + bg % params.num_groups * channels;
    var sum = 0.0;
    for (var i = lane; i < params.slices * channels; i += WORKGROUP_SIZE) {
        sum += partials[first + i / channels * params.channels + i % channels];
    }
    return row_sum(sum, lane) / (f32(params.pixels) * f32(channels));
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn mean(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
        @builtin(local_invocation_index) lane: u32) {
    let bg = min(flat_workgroup(group, grid), params.batch * params.num_groups - 1);
    let value = average(bg, lane);
    if (lane == 0) { average_out[bg] = value; }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn variance(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
            @builtin(local_invocation_index) lane: u32) {
    let bg = min(flat_workgroup(group, grid), params.batch * params.num_groups - 1);
    let value = average(bg, lane);
    if (lane == 0) { average_out[bg] = value; }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn normalize_channels(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                      @builtin(local_invocation_index) lane: u32) {
    let chunks = params.channels / CHUNK;
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane; // of (B, P, C / CHUNK)
    if (i >= params.batch * params.pixels * chunks) { return; }
    let norm = norm_of(i / (params.pixels * chunks), i % chunks);
    out[i] = Chunk(apply_norm(norm, ChunkF32(x[i])));
}
