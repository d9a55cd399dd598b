// mean_g and var_g = mean of (x - mean_g)^2 over the P pixels and C/G channels of each group g of an image (Wu and He,
// arXiv 1803.08494). The image's pixels are cut into S slices. sum_channels, sum_squares: an invocation adds one chunk of
// channels over one slice, so that neighbours read neighbouring memory; x holds all images, or a strip of one. mean,
// variance: a workgroup adds one group's S C/G partial sums. In all, x is read twice. Channels after the last group's
// are padding and count in none.
#import fragments/indexing

#ifdef PASS_SLICES
#import fragments/groups

@group(0) @binding(1) var<storage, read> x: array<Chunk>; // (strip_batch, strip_pixels, C)

// sum_channels
@group(0) @binding(2) var<storage, read_write> sums_out: array<ChunkF32>; // (B, S, C)

// sum_squares
@group(0) @binding(2) var<storage, read> means: array<f32>;                  // (B, G)
@group(0) @binding(3) var<storage, read_write> squares_out: array<ChunkF32>; // (B, S, C)

struct Slice { image: u32, c: u32, start: u32, end: u32, place: u32 } // chunk c of pixels start to end, all in x

// What invocation i of (strip_batch, strip_slices, C / CHUNK) adds, and the place of the sum in (B, S, C / CHUNK).
fn slice_of(i: u32) -> Slice {
    let chunks = params.channels / CHUNK;
    let b = i / (params.strip_slices * chunks);
    let slice = i / chunks % params.strip_slices;
    let start = slice * params.slice_pixels;
    let end = min(start + params.slice_pixels, params.strip_pixels);
    let image = params.first_image + b;
    let place = (image * params.slices + params.first_slice + slice) * chunks + i % chunks;
    return Slice(image, i % chunks, b * params.strip_pixels + start, b * params.strip_pixels + end, place);
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn sum_channels(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                @builtin(local_invocation_index) lane: u32) {
    let chunks = params.channels / CHUNK;
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane;
    if (i >= params.strip_batch * params.strip_slices * chunks) { return; }
    let slice = slice_of(i);
    var sums = ChunkF32();
    for (var p = slice.start; p < slice.end; p++) { sums += ChunkF32(x[p * chunks + slice.c]); }
    sums_out[slice.place] = sums;
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn sum_squares(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
               @builtin(local_invocation_index) lane: u32) {
    let chunks = params.channels / CHUNK;
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane;
    if (i >= params.strip_batch * params.strip_slices * chunks) { return; }
    let slice = slice_of(i);
    let mean = mean_of(groups_of(slice.image, slice.c));
    var squares = ChunkF32();
    for (var p = slice.start; p < slice.end; p++) {
        let centered = ChunkF32(x[p * chunks + slice.c]) - mean;
        squares += centered * centered;
    }
    squares_out[slice.place] = squares;
}
#endif

#ifdef PASS_AVERAGE
#import fragments/reduce

@group(0) @binding(1) var<storage, read> partials: array<f32>;          // (B, S, C)
@group(0) @binding(2) var<storage, read_write> average_out: array<f32>; // (B, G)

// The sum over a group's partial sums, divided by how many values of x they stand for.
fn average(bg: u32, lane: u32) -> f32 {
    let channels = params.group_channels;
    let first = bg / params.num_groups * params.slices * params.channels + bg % params.num_groups * channels;
    var sum = 0.0;
    for (var i = lane; i < params.slices * channels; i += WORKGROUP_SIZE) {
        sum += partials[first + i / channels * params.channels + i % channels];
    }
    return row_sum(sum, lane) / (f32(params.image_pixels) * f32(channels));
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
#endif

#ifdef PASS_MERGE
@group(0) @binding(1) var<storage, read> part_means: array<f32>;            // (B, G)
@group(0) @binding(2) var<storage, read> part_variances: array<f32>;        // (B, G)
@group(0) @binding(3) var<storage, read_write> merged_means: array<f32>;     // (B, G)
@group(0) @binding(4) var<storage, read_write> merged_variances: array<f32>; // (B, G)

// Of two parts in one (Chan, Golub and LeVeque 1979): with d = mean_2 - mean_1 and w the share of part 2,
//   mean = mean_1 + w d, var = (1 - w) var_1 + w var_2 + w (1 - w) d^2
@compute @workgroup_size(WORKGROUP_SIZE)
fn merge_statistics(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                    @builtin(local_invocation_index) lane: u32) {
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane;
    if (i >= params.num_values) { return; }
    let w = params.count / (params.before + params.count);
    let d = part_means[i] - merged_means[i];
    let within = mix(merged_variances[i], part_variances[i], w);
    merged_variances[i] = within + w * (1.0 - w) * d * d;
    merged_means[i] += w * d;
}
#endif
