// A B for CPUs (llvmpipe), where a load costs as much as 100 multiplications but the lanes of a subgroup exchange
// values for the price of a few: a subgroup sums LANE_TILE_M rows x 4 LANE_TILE_N4 columns a lane over K. Of A each
// lane loads 4 values along k of every row, so that one load serves all lanes; of B its own columns. No workgroup
// memory, no barrier. For what the importing file defines, see fragments/product.

@compute @workgroup_size(NUM_LANES)
fn product(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) index: u32,
           @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) subgroup_size: u32) {
    let num_lanes = min(subgroup_size, NUM_LANES);
    let row_0 = group.y * LANE_TILE_M;
    let column_0 = (group.x * NUM_LANES + index) * 4 * LANE_TILE_N4;
    let batch = group.z;
    var rows: array<RowA, LANE_TILE_M>;
    for (var i = 0u; i < LANE_TILE_M; i++) {
        // Rows beyond M repeat the last one; their sums are not stored.
        rows[i] = row_a(batch, min(row_0 + i, params.num_rows - 1));
    }
    var sums: array<array<vec4<f32>, LANE_TILE_N4>, LANE_TILE_M>;
    for (var k_0 = 0u; k_0 < params.depth; k_0 += 4 * num_lanes) {
        var a: array<vec4<f32>, LANE_TILE_M>;
        for (var i = 0u; i < LANE_TILE_M; i++) {
            a[i] = vec4<f32>(load_a(rows[i], k_0 + 4 * lane));
        }
        for (var source = 0u; source < num_lanes; source++) {
#ifdef TRANSPOSE_B
            for (var j = 0u; j < LANE_TILE_N4; j++) {
                let k = k_0 + 4 * source;
                let column = column_0 + 4 * j;
                let block = transpose(mat4x4<f32>(
                    vec4<f32>(load_b(batch, k, column)), vec4<f32>(load_b(batch, k, column + 1)),
                    vec4<f32>(load_b(batch, k, column + 2)), vec4<f32>(load_b(batch, k, column + 3))));
                for (var c = 0u; c < 4; c++) {
                    for (var i = 0u; i < LANE_TILE_M; i++) {
                        sums[i][j] = fma(vec4<f32>(subgroupShuffle(a[i][c], source)), block[c], sums[i][j]);
                    }
                }
            }
#else
            for (var c = 0u; c < 4; c++) {
                for (var j = 0u; j < LANE_TILE_N4; j++) {
                    let b = vec4<f32>(load_b(batch, k_0 + 4 * source + c, column_0 + 4 * j));
                    for (var i = 0u; i < LANE_TILE_M; i++) {
                        sums[i][j] = fma(vec4<f32>(subgroupShuffle(a[i][c], source)), b, sums[i][j]);
                    }
                }
            }
#endif
        }
    }
    for (var i = 0u; i < LANE_TILE_M; i++) {
        for (var j = 0u; j < LANE_TILE_N4; j++) {
            if (row_0 + i < params.num_rows && column_0 + 4 * j < params.num_columns) {
                store(batch, row_0 + i, column_0 + 4 * j, sums[i][j]);
            }
        }
    }
}
