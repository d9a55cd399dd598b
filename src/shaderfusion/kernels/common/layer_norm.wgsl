// y = (x - mean) / sqrt(var + eps) * weight + bias over the channels of a row (Ba et al., arXiv 1607.06450).
// A workgroup normalizes WORKGROUP_SIZE / ROW_LANES rows, of which each lane keeps CHUNKS chunks in registers; per element it
// reads x and writes out once. The variance is the mean of (x - mean)^2: no cancellation. A row of C values may end with
// padding: the mean and the variance are over the first params.channels.
#import fragments/chunk
#import fragments/indexing
#import fragments/reduce

@group(0) @binding(1) var<storage, read> x: array<Chunk>;         // (B, N, C)
@group(0) @binding(2) var<storage, read> weight: array<Chunk>;    // (C)
@group(0) @binding(3) var<storage, read> bias: array<Chunk>;      // (C)
@group(0) @binding(4) var<storage, read_write> out: array<Chunk>; // (B, N, C)

#ifdef SUBGROUP_ROWS
@compute @workgroup_size(WORKGROUP_SIZE)
fn layer_norm(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
              @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) k: u32) {
    let lane = subgroup * ROW_LANES + k;
#else
@compute @workgroup_size(WORKGROUP_SIZE)
fn layer_norm(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
              @builtin(local_invocation_index) lane: u32) {
    let k = lane % ROW_LANES;
#endif
    let row = flat_workgroup(group, grid) * (WORKGROUP_SIZE / ROW_LANES) + lane / ROW_LANES;
    let chunks = params.row_stride / CHUNK;
    let first = min(row, params.rows - 1) * chunks; // lanes past the last row repeat it, to reach every barrier

    var values: array<ChunkF32, CHUNKS>;
#unroll
    for (var i = 0u; i < CHUNKS; i++) {
        if (k + i * ROW_LANES < chunks) { values[i] = ChunkF32(x[first + k + i * ROW_LANES]); }
    }
    var sums = ChunkF32();
#unroll
    for (var i = 0u; i < CHUNKS; i++) {
        sums += values[i];
    }
    let mean = row_sum(chunk_sum(sums), lane) / f32(params.channels);

    var squares = ChunkF32();
#unroll
    for (var i = 0u; i < CHUNKS; i++) {
        let centered = values[i] - mean;
        let is_channel = chunk_indices((k + i * ROW_LANES) * CHUNK) < ChunkU32(params.channels);
        squares += select(ChunkF32(), centered * centered, is_channel);
    }
    let variance = row_sum(chunk_sum(squares), lane) / f32(params.channels);

    if (row >= params.rows) { return; }
    let scale = inverseSqrt(variance + params.eps);
#unroll
    for (var i = 0u; i < CHUNKS; i++) {
        let c = k + i * ROW_LANES;
        if (c < chunks) {
            out[first + c] = Chunk((values[i] - mean) * scale * ChunkF32(weight[c]) + ChunkF32(bias[c]));
        }
    }
}
