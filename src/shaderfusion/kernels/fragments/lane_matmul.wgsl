// A B for CPUs (llvmpipe), where a load costs as much as many multiplications but the lanes of a subgroup exchange
// values for the price of a few: a subgroup sums LANE_TILE_M rows x 4 columns a lane over K. Of each row of A each
// lane loads another two k, so that one load serves all lanes; of B its own columns. No workgroup memory, no barrier.
// For what the importing file defines, see fragments/product; here load_a gives 2 values along k.

@compute @workgroup_size(NUM_LANES)
fn product(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) index: u32,
           @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) subgroup_size: u32) {
    let num_lanes = min(subgroup_size, NUM_LANES);
    let row_0 = group.y * LANE_TILE_M;
    let column = (group.x * NUM_LANES + index) * 4;
    let batch = group.z;
    var rows: array<RowA, LANE_TILE_M>;
    for (var i = 0u; i < LANE_TILE_M; i++) {
        // Rows beyond M repeat the last one; their sums are not stored.
        rows[i] = row_a(batch, min(row_0 + i, params.num_rows - 1));
    }
    var sums: array<vec4<f32>, LANE_TILE_M>;
    for (var k_0 = 0u; k_0 < params.depth; k_0 += 2 * num_lanes) {
        var a: array<vec2<f32>, LANE_TILE_M>;
        for (var i = 0u; i < LANE_TILE_M; i++) {
            a[i] = vec2<f32>(load_a(rows[i], k_0 + 2 * lane));
        }
        for (var source = 0u; source < num_lanes; source++) {
            for (var c = 0u; c < 2; c++) {
                let b = vec4<f32>(load_b(batch, k_0 + 2 * source + c, column));
                for (var i = 0u; i < LANE_TILE_M; i++) {
                    sums[i] = fma(vec4<f32>(subgroupShuffle(a[i][c], source)), b, sums[i]);
                }
            }
        }
    }
    for (var i = 0u; i < LANE_TILE_M; i++) {
        if (row_0 + i < params.num_rows && column < params.num_columns) {
            store(batch, row_0 + i, column, sums[i]);
        }
    }
}
