// softmax(A)_ij = exp(A_ij - L_i) / S_i, L_i = max_j A_ij, S_i = sum_j exp(A_ij - L_i), in a dispatch of its own.
// A workgroup takes WORKGROUP_SIZE / ROW_LANES rows; per element it reads x three times, the last two from cache, and
// writes out once. Columns past num_columns, and with CAUSAL those right of the diagonal, become 0, whatever x holds.
#import fragments/softmax_rows

@group(0) @binding(1) var<storage, read> x: array<Chunk>;         // (..., N, M)
@group(0) @binding(2) var<storage, read_write> out: array<Chunk>; // (..., N, M)

@compute @workgroup_size(WORKGROUP_SIZE)
fn softmax_unfused(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                   @builtin(local_invocation_index) lane: u32) {
    let row = row_of(flat_workgroup(group, grid), lane);
    let LS = statistics(row, lane);
    if (row.index >= params.rows) { return; }
    for (var c = lane % ROW_LANES; c < params.row_stride / CHUNK; c += ROW_LANES) {
        var p = ChunkF32();
        if (c * CHUNK < row.columns) { p = exp(logits(row, c) - LS.x) / LS.y; }
        out[row.first + c] = Chunk(p);
    }
}
