// softmax(A)_ij = exp(A_ij - L_i) / S_i, L_i = max_j A_ij, S_i = sum_j exp(A_ij - L_i), in a dispatch of its own.
// A workgroup takes WORKGROUP_SIZE / ROW_LANES rows; per element it reads x three times, the last two from cache, and
// writes out once. Columns past num_columns, and with CAUSAL those right of the diagonal, become 0, whatever x holds.
#import fragments/chunk
#import fragments/indexing
#import fragments/reduce

@group(0) @binding(1) var<storage, read> x: array<Chunk>;         // (..., N, M)
@group(0) @binding(2) var<storage, read_write> out: array<Chunk>; // (..., N, M)

const LOWEST = -3.4e38; // a masked logit, near the lowest f32

// The logits of chunk c of a row, masked from `columns` on.
fn logits(first: u32, c: u32, columns: u32) -> ChunkF32 {
    return select(ChunkF32(LOWEST), ChunkF32(x[first + c]), chunk_indices(c * CHUNK) < ChunkU32(columns));
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn softmax_unfused(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                   @builtin(local_invocation_index) lane: u32) {
    let row = flat_workgroup(group, grid) * (WORKGROUP_SIZE / ROW_LANES) + lane / ROW_LANES;
    let k = lane % ROW_LANES;
    let row_chunks = params.row_stride / CHUNK;
    let first = min(row, params.rows - 1) * row_chunks; // lanes past the last row repeat it, to reach every barrier
#ifdef CAUSAL
    let columns = min(params.num_columns, row % params.queries + 1);
#else
    let columns = params.num_columns;
#endif
    let chunks = (columns + CHUNK - 1) / CHUNK; // the last may be partly masked

    var largest = ChunkF32(LOWEST);
    for (var c = k; c < chunks; c += ROW_LANES) { largest = max(largest, logits(first, c, columns)); }
    let L = row_max(chunk_max(largest), lane);

    var sums = ChunkF32();
    for (var c = k; c < chunks; c += ROW_LANES) { sums += exp(logits(first, c, columns) - L); }
    let S = row_sum(chunk_sum(sums), lane);

    if (row >= params.rows) { return; }
    for (var c = k; c < row_chunks; c += ROW_LANES) {
        var p = ChunkF32();
        if (c < chunks) { p = exp(logits(first, c, columns) - L) / S; }
        out[first + c] = Chunk(p);
    }
}
