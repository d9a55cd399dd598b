// mean_g and var_g = mean of (x - mean_g)^2 over the P pixels and C/G channels of each group g of an image (Wu and He,
// arXiv 1803.08494), from one reading of x. The image's pixels are cut into S slices. slice_statistics: an invocation
// finds mean_i and the sum of squares Q_i about it of one chunk of channels over one slice, LOADS pixels at once, so that
// neighbours read neighbouring memory; x holds all images, or a strip of one. join_slices: a workgroup joins those of one group, of n_i
// values each (Chan, Golub and LeVeque 1979):
//   mean = sum of n_i mean_i / n, var = sum of (Q_i + n_i (mean_i - mean)^2) / n
// Channels after the last group's are padding and count in none.
#import fragments/indexing

#ifdef PASS_SLICES
#import fragments/chunk

@group(0) @binding(1) var<storage, read> x: array<Chunk>;                      // (strip_batch, strip_pixels, C)
@group(0) @binding(2) var<storage, read_write> slice_means: array<ChunkF32>;   // (B, S, C)
@group(0) @binding(3) var<storage, read_write> slice_squares: array<ChunkF32>; // (B, S, C)

@compute @workgroup_size(WORKGROUP_SIZE)
fn slice_statistics(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                    @builtin(local_invocation_index) lane: u32) {
    let chunks = params.channels / CHUNK;
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane; // of (strip_batch, strip_slices, C / CHUNK)
    if (i >= params.strip_batch * params.strip_slices * chunks) { return; }
    let c = i % chunks;
    let slice = i / chunks % params.strip_slices;
    let b = i / (chunks * params.strip_slices);
    let start = slice * params.slice_pixels;
    let count = min(params.slice_pixels, params.strip_pixels - start);
    let first = (b * params.strip_pixels + start) * chunks + c;

    // Differences from the first pixel: squares of values far from zero would round away what tells them apart.
    let origin = ChunkF32(x[first]);
    var sum = ChunkF32();
    var squares = ChunkF32();
    for (var p = 0u; p < count; p += LOADS) {
        var d: array<ChunkF32, LOADS>;
#unroll
        for (var j = 0u; j < LOADS; j++) {
            d[j] = ChunkF32(x[first + min(p + j, count - 1) * chunks]) - origin;
        }
#unroll
        for (var j = 0u; j < LOADS; j++) {
            let counted = select(ChunkF32(), d[j], p + j < count);
            sum += counted;
            squares += counted * counted;
        }
    }
    let mean = sum / f32(count);
    let place = ((params.first_image + b) * params.slices + params.first_slice + slice) * chunks + c;
    slice_means[place] = origin + mean;
    slice_squares[place] = max(squares - mean * sum, ChunkF32());
}
#endif

#ifdef PASS_JOIN
#import fragments/reduce

@group(0) @binding(1) var<storage, read> slice_means: array<f32>;    // (B, S, C)
@group(0) @binding(2) var<storage, read> slice_squares: array<f32>;  // (B, S, C)
@group(0) @binding(3) var<storage, read_write> means: array<f32>;     // (B, G)
@group(0) @binding(4) var<storage, read_write> variances: array<f32>; // (B, G)

// Pixels of a slice of an image, whose strips are all as large but for the last.
fn pixels_of(slice: u32) -> u32 {
    let strip = slice / params.strip_slices;
    let start = slice % params.strip_slices * params.slice_pixels;
    return min(params.slice_pixels, min(params.strip_pixels, params.image_pixels - strip * params.strip_pixels) - start);
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn join_slices(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
               @builtin(local_invocation_index) lane: u32) {
    let bg = min(flat_workgroup(group, grid), params.batch * params.num_groups - 1);
    let channels = params.group_channels;
    let first = bg / params.num_groups * params.slices * params.channels + bg % params.num_groups * channels;
    let count = f32(params.image_pixels) * f32(channels);

    var sum = 0.0;
    for (var i = lane; i < params.slices * channels; i += WORKGROUP_SIZE) {
        sum += f32(pixels_of(i / channels)) * slice_means[first + i / channels * params.channels + i % channels];
    }
    let mean = row_sum(sum, lane) / count;
    var squares = 0.0;
    for (var i = lane; i < params.slices * channels; i += WORKGROUP_SIZE) {
        let place = first + i / channels * params.channels + i % channels;
        let d = slice_means[place] - mean;
        squares += slice_squares[place] + f32(pixels_of(i / channels)) * d * d;
    }
    let variance = row_sum(squares, lane) / count;
    if (lane == 0) {
        means[bg] = mean;
        variances[bg] = variance;
    }
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
