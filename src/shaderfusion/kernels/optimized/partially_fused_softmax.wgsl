// The reduction of softmax alone: L_i = max_j A_ij, S_i = sum_j exp(A_ij - L_i) (Chen et al. 2023, section 3.2.2).
// exp(A_ij - L_i) / S_i is folded into the product with V: common/matmul with the flag SOFTMAX. A workgroup takes
// WORKGROUP_SIZE / ROW_LANES rows; per element it reads x twice, the second time from cache; per row it writes 2 values.
#import fragments/softmax_rows

@group(0) @binding(1) var<storage, read> x: array<Chunk>;                 // (B, heads, N, M)
@group(0) @binding(2) var<storage, read_write> statistics_of: array<vec2<f32>>; // (B, heads, N, 2): L, S

@compute @workgroup_size(WORKGROUP_SIZE)
fn reduce_rows(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
               @builtin(local_invocation_index) lane: u32) {
    let row = row_of(flat_workgroup(group, grid), lane);
    let LS = statistics(row, lane);
    if (row.index < params.rows && lane % ROW_LANES == 0) { statistics_of[row.index] = LS; }
}
