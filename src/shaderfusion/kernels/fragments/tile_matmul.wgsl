// out = epilogue(A B), register-tiled: a workgroup sums a TILE_M x TILE_N tile over K, a thread THREAD_M x 4 THREAD_N4.
// For each TILE_K of K it stages TILE_M x TILE_K of A and TILE_K x TILE_N of B in workgroup memory, as f32. So A is
// read N / TILE_N times, B M / TILE_M times, out written once. With SPLIT, each of num_splits workgroups sums its part
// of K into parts (num_splits, batches, M, N) f32; then sum_splits, with SUM_SPLITS, adds them and applies the epilogue.
//
// The importing file defines: struct RowA; fn row_a(batch, row) -> RowA; fn load_a(row, k) -> vec4<Elem>, 4 values
// along k; fn load_b(batch, k, column) -> vec4<Elem>, 4 values along the columns, or along k with TRANSPOSE_B.
// k and column are multiples of 4 (but any column with TRANSPOSE_B); beyond their edge both loads give 0.

#ifdef SPLIT
@group(0) @binding(3) var<storage, read_write> parts: array<vec4<f32>>; // (S, B, M, N / 4)
#else
@group(0) @binding(OUT_BINDING) var<storage, read_write> out: array<vec4<Elem>>; // (B, M, N / 4), any row stride
#endif
#ifdef BIAS
@group(0) @binding(BIAS_BINDING) var<storage, read> bias: array<vec4<Elem>>; // (N / 4)
#endif
#ifdef IMAGE_BIAS
@group(0) @binding(IMAGE_BIAS_BINDING) var<storage, read> image_bias: array<vec4<Elem>>; // (images, N / 4)
#endif
#ifdef RESIDUAL
@group(0) @binding(RESIDUAL_BINDING) var<storage, read> residual: array<vec4<Elem>>; // as out
#endif

// Writes one vector of sums, as out = scale sums + bias + image_bias + residual.
fn store(batch: u32, row: u32, column: u32, sums: vec4<f32>) {
#ifdef SPLIT
    // batch counts the splits too, outermost.
    parts[((batch * params.num_rows + row) * params.num_columns + column) / 4] = sums;
#else
    let index = (batch / params.num_inner) * params.out_outer + (batch % params.num_inner) * params.out_inner
        + row * params.out_row + column / 4;
    var value = params.scale * sums;
#ifdef BIAS
    value += vec4<f32>(bias[column / 4]);
#endif
#ifdef IMAGE_BIAS
    value += vec4<f32>(image_bias[((row / params.rows_per_image) * params.num_columns + column) / 4]);
#endif
#ifdef RESIDUAL
    value += vec4<f32>(residual[index]);
#endif
    out[index] = vec4<Elem>(value);
#endif
}

#ifdef SUM_SPLITS
@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>; // (S, B, M, N / 4)

@compute @workgroup_size(SUM_WORKGROUP_SIZE)
fn sum_splits(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
              @builtin(local_invocation_index) lane: u32) {
    let i = (group.x + group.y * grid.x) * SUM_WORKGROUP_SIZE + lane;
    let size = params.num_batches * params.num_rows * (params.num_columns / 4);
    if (i >= size) { return; }
    var sums = parts[i];
    for (var split = 1u; split < params.num_splits; split++) {
        sums += parts[split * size + i];
    }
    let row = i / (params.num_columns / 4);
    store(row / params.num_rows, row % params.num_rows, 4 * (i % (params.num_columns / 4)), sums);
}
#else
const K4 = TILE_K / 4;
const N4 = TILE_N / 4;
const THREADS_M = TILE_M / THREAD_M;
const THREADS_N = N4 / THREAD_N4;
const THREADS = THREADS_M * THREADS_N;
const A_PER_THREAD = TILE_M * K4 / THREADS;
const A_ROW_STEP = THREADS / K4;
const A_STRIDE = TILE_M + 1; // one vector of padding spreads sh_a's columns over the memory banks

var<workgroup> sh_a: array<vec4<f32>, K4 * A_STRIDE>; // [k / 4][row], 4 values along k
var<workgroup> sh_b: array<vec4<f32>, TILE_K * N4>;   // [k][column / 4], 4 values along the columns

@compute @workgroup_size(THREADS)
fn product(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let row_0 = group.y * TILE_M;
    let column_0 = group.x * TILE_N;
    let batch = group.z % params.num_batches;
    let k_begin = (group.z / params.num_batches) * params.split_depth;
    let k_end = min(k_begin + params.split_depth, params.depth);

    let stage_k4 = lane % K4;
    let stage_row = lane / K4;
    var rows: array<RowA, A_PER_THREAD>;
    for (var i = 0u; i < A_PER_THREAD; i++) {
        // Rows beyond M repeat the last one; their sums are not stored.
        rows[i] = row_a(batch, min(row_0 + stage_row + i * A_ROW_STEP, params.num_rows - 1));
    }
    let thread_m = lane / THREADS_N;
    let thread_n = lane % THREADS_N;
    var sums: array<array<vec4<f32>, THREAD_N4>, THREAD_M>;

    for (var k_0 = k_begin; k_0 < k_end; k_0 += TILE_K) {
        for (var i = 0u; i < A_PER_THREAD; i++) {
            sh_a[stage_k4 * A_STRIDE + stage_row + i * A_ROW_STEP] = vec4<f32>(load_a(rows[i], k_0 + 4 * stage_k4));
        }
#ifdef TRANSPOSE_B
        for (var i = lane; i < K4 * N4; i += THREADS) { // blocks of 4 x 4
            let k = k_0 + 4 * (i % K4);
            let column = column_0 + 4 * (i / K4);
            let block = transpose(mat4x4<f32>(
                vec4<f32>(load_b(batch, k, column)), vec4<f32>(load_b(batch, k, column + 1)),
                vec4<f32>(load_b(batch, k, column + 2)), vec4<f32>(load_b(batch, k, column + 3))));
            for (var j = 0u; j < 4; j++) {
                sh_b[(4 * (i % K4) + j) * N4 + i / K4] = block[j];
            }
        }
#else
        for (var i = lane; i < TILE_K * N4; i += THREADS) {
            sh_b[i] = vec4<f32>(load_b(batch, k_0 + i / N4, column_0 + 4 * (i % N4)));
        }
#endif
        workgroupBarrier();
        for (var k4 = 0u; k4 < K4; k4++) {
            var b: array<array<vec4<f32>, THREAD_N4>, 4>;
            for (var k = 0u; k < 4; k++) {
                for (var j = 0u; j < THREAD_N4; j++) {
                    b[k][j] = sh_b[(4 * k4 + k) * N4 + thread_n + j * THREADS_N];
                }
            }
            for (var i = 0u; i < THREAD_M; i++) {
                let a = sh_a[k4 * A_STRIDE + thread_m + i * THREADS_M];
                for (var j = 0u; j < THREAD_N4; j++) {
                    sums[i][j] += a.x * b[0][j] + a.y * b[1][j] + a.z * b[2][j] + a.w * b[3][j];
                }
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < THREAD_M; i++) {
        let row = row_0 + thread_m + i * THREADS_M;
        for (var j = 0u; j < THREAD_N4; j++) {
            let column = column_0 + 4 * (thread_n + j * THREADS_N);
            if (row < params.num_rows && column < params.num_columns) {
#ifdef SPLIT
                store(group.z, row, column, sums[i][j]);
#else
                store(batch, row, column, sums[i][j]);
#endif
            }
        }
    }
}
#endif
