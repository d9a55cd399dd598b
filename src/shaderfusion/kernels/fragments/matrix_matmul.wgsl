// A B by a GPU's matrix units: a workgroup of SUBGROUPS_M x SUBGROUPS_N subgroups sums a TILE_M x TILE_N tile over K, each
// subgroup an equal part of it, in fragments of MATRIX_M x MATRIX_N. For each TILE_K of K it stages TILE_M x TILE_K of A and
// TILE_K x TILE_N of B in workgroup memory, so that A is read N / TILE_N times and B M / TILE_M times. The sums go
// through the same memory to the epilogue, a row of fragments at a time. For what the importing file defines, see
// fragments/product; here loads give vectors of 8 values.
#import fragments/matrix_units

const THREADS = SUBGROUPS_M * SUBGROUPS_N * SUBGROUP_SIZE;
const SUBGROUP_M = TILE_M / SUBGROUPS_M; // of the tile, by each subgroup
const SUBGROUP_N = TILE_N / SUBGROUPS_N;

const K8 = TILE_K / 8;
const N4 = TILE_N / 4;
#ifdef TRANSPOSE_B
const B_ROWS = TILE_N; // [column][k / 8]
const B_ROW8 = K8;
#else
const B_ROWS = TILE_K; // [k][column / 8]
const B_ROW8 = TILE_N / 8;
#endif
const A_STRIDE = K8 + 1; // one vector of padding spreads rows over the memory banks
const B_STRIDE = B_ROW8 + 1;
const OUT_STRIDE = N4 + 1;
const A_SIZE = TILE_M * A_STRIDE; // A's rows come first, [row][k / 8]
const A_PER_THREAD = TILE_M * K8 / THREADS;
const B_PER_THREAD = B_ROWS * B_ROW8 / THREADS;
const OUT_ROWS = SUBGROUPS_M * MATRIX_M; // the rows of sums that workgroup memory holds at a time

var<workgroup> sh: array<vec4<u32>, max(A_SIZE + B_ROWS * B_STRIDE, OUT_ROWS * OUT_STRIDE)>;

fn load_b_at(batch: u32, k_0: u32, tile: u32, i: u32) -> vec4<u32> {
#ifdef TRANSPOSE_B
    return load_b(batch, k_0 + 8 * (i % B_ROW8), column_at(tile, i / B_ROW8));
#else
    return load_b(batch, k_0 + i / B_ROW8, column_at(tile, 8 * (i % B_ROW8)));
#endif
}

#ifdef SIZED_SUBGROUPS
@compute @workgroup_size(THREADS) @subgroup_size(SUBGROUP_SIZE)
#else
@compute @workgroup_size(THREADS)
#endif
fn product(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32,
           @builtin(subgroup_id) subgroup: u32) {
    let row_0 = group.y * TILE_M;
    let batch = group.z % params.num_batches;
    let k_begin = (group.z / params.num_batches) * params.split_depth;
    let k_end = min(k_begin + params.split_depth, params.depth);
#ifdef SPLIT
    let out_batch = group.z; // counts the splits too, outermost
#else
    let out_batch = batch;
#endif
    let subgroup_row = subgroup / SUBGROUPS_N;
    let subgroup_column = subgroup % SUBGROUPS_N;

    let stage_k8 = lane % K8;
    let stage_row = lane / K8;
    var rows: array<RowA, A_PER_THREAD>;
    var next_a: array<vec4<u32>, A_PER_THREAD>;
    var next_b: array<vec4<u32>, B_PER_THREAD>;
    for (var i = 0u; i < A_PER_THREAD; i++) {
        // Rows beyond M repeat the last one; their sums are not stored.
        rows[i] = row_a(batch, min(row_0 + stage_row + i * (THREADS / K8), params.num_rows - 1));
        next_a[i] = load_a(rows[i], k_begin + 8 * stage_k8);
    }
    for (var i = 0u; i < B_PER_THREAD; i++) { next_b[i] = load_b_at(batch, k_begin, group.x, lane + i * THREADS); }

    var sums = array<array<Result, FRAGMENTS_N>, FRAGMENTS_M>();
    for (var k_0 = k_begin; k_0 < k_end; k_0 += TILE_K) {
        for (var i = 0u; i < A_PER_THREAD; i++) {
            sh[(stage_row + i * (THREADS / K8)) * A_STRIDE + stage_k8] = next_a[i];
        }
        for (var i = 0u; i < B_PER_THREAD; i++) {
            let place = lane + i * THREADS;
            sh[A_SIZE + place / B_ROW8 * B_STRIDE + place % B_ROW8] = next_b[i];
        }
        workgroupBarrier();
        // The next tile is on its way while this one is multiplied. The last turn loads zeros from beyond K.
        let next_k = k_0 + TILE_K;
        for (var i = 0u; i < A_PER_THREAD; i++) { next_a[i] = load_a(rows[i], next_k + 8 * stage_k8); }
        for (var i = 0u; i < B_PER_THREAD; i++) { next_b[i] = load_b_at(batch, next_k, group.x, lane + i * THREADS); }
        for (var k = 0u; k < TILE_K; k += MATRIX_K) {
            var a: array<Left, FRAGMENTS_M>;
#unroll
            for (var i = 0u; i < FRAGMENTS_M; i++) {
                a[i] = load_left((subgroup_row * SUBGROUP_M + i * MATRIX_M) * A_STRIDE + k / 8, A_STRIDE);
            }
#unroll
            for (var j = 0u; j < FRAGMENTS_N; j++) {
                let column = subgroup_column * SUBGROUP_N + j * MATRIX_N;
#ifdef TRANSPOSE_B
                let b = load_right_transposed(A_SIZE + column * B_STRIDE + k / 8, B_STRIDE);
#else
                let b = load_right(A_SIZE + k * B_STRIDE + column / 8, B_STRIDE);
#endif
#unroll
                for (var i = 0u; i < FRAGMENTS_M; i++) {
                    sums[i][j] = multiply_add(a[i], b, sums[i][j]);
                }
            }
        }
        workgroupBarrier();
    }

#unroll
    for (var i = 0u; i < FRAGMENTS_M; i++) {
#unroll
        for (var j = 0u; j < FRAGMENTS_N; j++) {
            let column4 = (subgroup_column * SUBGROUP_N + j * MATRIX_N) / 4;
            store_result(subgroup_row * MATRIX_M * OUT_STRIDE + column4, OUT_STRIDE, sums[i][j]);
        }
        workgroupBarrier();
#ifdef GEGLU
        for (var place = lane; place < OUT_ROWS * (N4 / 2); place += THREADS) {
            let place_row = place / (N4 / 2);
            let row = row_0 + place_row / MATRIX_M * SUBGROUP_M + i * MATRIX_M + place_row % MATRIX_M;
            let column = column_at(group.x, 4 * (place % (N4 / 2)));
            if (row < params.num_rows && column < params.num_columns / 2) {
                let at = place_row * OUT_STRIDE + place % (N4 / 2);
                store_gated(row, column, bitcast<vec4<f32>>(sh[at]), bitcast<vec4<f32>>(sh[at + N4 / 2]));
            }
        }
#else
        for (var place = lane; place < OUT_ROWS * N4; place += THREADS) {
            let place_row = place / N4;
            let row = row_0 + place_row / MATRIX_M * SUBGROUP_M + i * MATRIX_M + place_row % MATRIX_M;
            let column = column_at(group.x, 4 * (place % N4));
            if (row < params.num_rows && column < params.num_columns) {
                store(out_batch, row, column, bitcast<vec4<f32>>(sh[place_row * OUT_STRIDE + place % N4]));
            }
        }
#endif
        workgroupBarrier();
    }
}
