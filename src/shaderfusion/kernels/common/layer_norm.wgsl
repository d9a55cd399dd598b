// y = (x - mean) / sqrt(var + eps) * weight + bias over the channels of a row (Ba et al., arXiv 1607.06450).
// A workgroup normalizes WORKGROUP_SIZE / ROW_LANES rows; per element it reads x three times, the last two from cache
// (the variance is the mean of (x - mean)^2: no cancellation), and writes out once. A row of C values may end with
// padding: the mean and the variance are over the first params.channels.
#import fragments/chunk
#import fragments/indexing
#import fragments/reduce

@group(0) @binding(1) var<storage, read> x: array<Chunk>;         // (B, N, C)
@group(0) @binding(2) var<storage, read> weight: array<Chunk>;    // (C)
@group(0) @binding(3) var<storage, read> bias: array<Chunk>;      // (C)
@group(0) @binding(4) var<storage, read_write> out: array<Chunk>; // (B, N, C)

@compute @workgroup_size(WORKGROUP_SIZE)
fn layer_norm(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
              @builtin(local_invocation_index) lane: u32) {
    let row = flat_workgroup(group, grid) * (WORKGROUP_SIZE / ROW_LANES) + lane / ROW_LANES;
    let k = lane % ROW_LANES;
    let chunks = params.row_stride / CHUNK;
    let first = min(row, params.rows - 1) * chunks; // lanes past the last row repeat it, to reach every barrier

    var sums = ChunkF32();
    for (var c = k; c < chunks; c += ROW_LANES) { sums += ChunkF32(x[first + c]); }
    let mean = row_sum(chunk_sum(sums), lane) / f32(params.channels);

    var squares = ChunkF32();
    for (var c = k; c < chunks; c += ROW_LANES) {
        var centered = ChunkF32(x[first + c]) - mean;
#ifdef PADDED
        centered = select(ChunkF32(), centered, chunk_indices(c * CHUNK) < ChunkU32(params.channels));
#endif
        squares += centered * centered;
    }
    let variance = row_sum(chunk_sum(squares), lane) / f32(params.channels);

    if (row >= params.rows) { return; }
    let scale = inverseSqrt(variance + params.eps);
    for (var c = k; c < chunks; c += ROW_LANES) {
        let normalized = (ChunkF32(x[first + c]) - mean) * scale;
        out[first + c] = Chunk(normalized * ChunkF32(weight[c]) + ChunkF32(bias[c]));
    }
}
