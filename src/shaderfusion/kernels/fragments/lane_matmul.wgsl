// A B for CPUs, where a load costs as much as many multiplications but the lanes of a subgroup exchange values for the
// price of a few: a subgroup sums LANE_TILE_M rows x LANE_VECTORS vectors of 4 columns a lane over K. Of each row of A
// each lane loads another two k, so that one load serves all lanes; of B its own columns. No workgroup memory, no
// barrier. Conditions cost as much as loads, so that edges are clamped instead.
//
// llvmpipe repeats the loops over rows and columns by itself. SwiftShader does not, and reads what is indexed by a loop's
// variable lane by lane: with UNROLLED only constants index, and it keeps the sums in registers. All its subgroups have
// NUM_LANES, so that the lane that a value comes from is a constant too.
//
// The importing file defines RowA, row_a, PlaceA; fn place_a(k) -> PlaceA, what of k all rows share, for k < K alone;
// load_a(row, place), 2 values along k; and of B, struct ColumnsB; fn columns_b(batch, column) -> ColumnsB, 4 columns; fn load_b(columns, k) -> RowsB, two rows of them, of
// which the second is 0 if it is beyond K. k is even. Columns beyond the edge are not stored, but can be loaded.

alias RowsB = array<vec4<Elem>, 2>;

@compute @workgroup_size(NUM_LANES)
fn product(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) index: u32,
           @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) subgroup_size: u32) {
    let num_lanes = min(subgroup_size, NUM_LANES);
    let row_0 = group.y * LANE_TILE_M;
    let column_0 = 4 * (group.x * NUM_LANES * LANE_VECTORS + index);
    let batch = group.z;
    var rows: array<RowA, LANE_TILE_M>;
#unroll UNROLLED
    for (var i = 0u; i < LANE_TILE_M; i++) {
        // Rows beyond M repeat the last one; their sums are not stored.
        rows[i] = row_a(batch, min(row_0 + i, params.num_rows - 1));
    }
    var columns: array<ColumnsB, LANE_VECTORS>;
#unroll UNROLLED
    for (var j = 0u; j < LANE_VECTORS; j++) {
        columns[j] = columns_b(batch, column_0 + 4 * NUM_LANES * j);
    }
    let last_pair = (params.depth - 1) / 2;

    var sums: array<array<vec4<f32>, LANE_VECTORS>, LANE_TILE_M>;
    for (var pair_0 = 0u; pair_0 <= last_pair; pair_0 += num_lanes) {
        let place = place_a(2 * min(pair_0 + lane, last_pair));
        var a: array<vec2<f32>, LANE_TILE_M>;
#unroll UNROLLED
        for (var i = 0u; i < LANE_TILE_M; i++) {
            a[i] = vec2<f32>(load_a(rows[i], place));
        }
#ifdef UNROLLED
        let is_there = pair_0 + lane <= last_pair;
#unroll
        for (var i = 0u; i < LANE_TILE_M; i++) {
            a[i] = select(vec2<f32>(), a[i], is_there);
        }
#unroll
        for (var source = 0u; source < NUM_LANES; source++) {
#else
        let num_pairs = min(num_lanes, last_pair + 1 - pair_0);
        for (var source = 0u; source < num_pairs; source++) {
#endif
            var b: array<array<vec4<f32>, 2>, LANE_VECTORS>;
#unroll UNROLLED
            for (var j = 0u; j < LANE_VECTORS; j++) {
                let pair = load_b(columns[j], 2 * min(pair_0 + source, last_pair));
                b[j] = array<vec4<f32>, 2>(vec4<f32>(pair[0]), vec4<f32>(pair[1]));
            }
#unroll UNROLLED
            for (var i = 0u; i < LANE_TILE_M; i++) {
#unroll UNROLLED
                for (var c = 0u; c < 2; c++) {
#ifdef UNROLLED
                    let value = vec4<f32>(subgroupBroadcast(a[i][c], source));
#else
                    let value = vec4<f32>(subgroupShuffle(a[i][c], source));
#endif
#unroll UNROLLED
                    for (var j = 0u; j < LANE_VECTORS; j++) {
                        sums[i][j] = fma(value, b[j][c], sums[i][j]);
                    }
                }
            }
        }
    }
#unroll UNROLLED
    for (var j = 0u; j < LANE_VECTORS; j++) {
        let column = column_0 + 4 * NUM_LANES * j;
        if (column < params.num_columns) {
            let bias_of_column = bias_at(column);
#unroll UNROLLED
            for (var i = 0u; i < LANE_TILE_M; i++) {
                if (row_0 + i < params.num_rows) { store_biased(batch, row_0 + i, column, sums[i][j], bias_of_column); }
            }
        }
    }
}
