// A B, register-tiled, for GPUs: a workgroup sums a TILE_M x TILE_N tile over K, a thread THREAD_M x 4 THREAD_N4 of it.
// For each TILE_K of K it stages TILE_M x TILE_K of A and TILE_K x TILE_N of B in workgroup memory, as f32, so that A
// is read N / TILE_N times and B M / TILE_M times. For what the importing file defines, see fragments/product.

const K4 = TILE_K / 4;
const N4 = TILE_N / 4;
const THREADS_M = TILE_M / THREAD_M;
const THREADS_N = N4 / THREAD_N4;
const THREADS = THREADS_M * THREADS_N;
const A_PER_THREAD = TILE_M * K4 / THREADS;
const B_PER_THREAD = TILE_K * N4 / THREADS;
const A_ROW_STEP = THREADS / K4;
const A_STRIDE = TILE_M + 1; // one vector of padding spreads sh_a's columns over the memory banks

var<workgroup> sh_a: array<vec4<f32>, K4 * A_STRIDE>; // [k / 4][row], 4 values along k
var<workgroup> sh_b: array<vec4<f32>, TILE_K * N4>;   // [k][column / 4], 4 values along the columns

// The k and column, within the tile, of the v-th vector of B, and its place in sh_b.
#ifdef TRANSPOSE_B
fn b_k(v: u32) -> u32 { return 4 * (v % K4); }
fn b_column(v: u32) -> u32 { return v / K4; }
fn stage_b(v: u32, values: vec4<f32>) {
    for (var i = 0u; i < 4; i++) {
        sh_b[(b_k(v) + i) * N4 + b_column(v) / 4][b_column(v) % 4] = values[i];
    }
}
#else
fn b_k(v: u32) -> u32 { return v / N4; }
fn b_column(v: u32) -> u32 { return 4 * (v % N4); }
fn stage_b(v: u32, values: vec4<f32>) { sh_b[v] = values; }
#endif

@compute @workgroup_size(THREADS)
fn product(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let row_0 = group.y * TILE_M;
    let column_0 = group.x * TILE_N;
    let batch = group.z % params.num_batches;
    let k_begin = (group.z / params.num_batches) * params.split_depth;
    let k_end = min(k_begin + params.split_depth, params.depth);

    // What this thread stages: vectors of A at stage_k of some rows, and of B.
    let stage_k = 4 * (lane % K4);
    let stage_row = lane / K4;
    var rows: array<RowA, A_PER_THREAD>;
    for (var i = 0u; i < A_PER_THREAD; i++) {
        // Rows beyond M repeat the last one; their sums are not stored.
        rows[i] = row_a(batch, min(row_0 + stage_row + i * A_ROW_STEP, params.num_rows - 1));
    }
    var next_a: array<vec4<Elem>, A_PER_THREAD>;
    var next_b: array<vec4<Elem>, B_PER_THREAD>;
    for (var i = 0u; i < A_PER_THREAD; i++) {
        next_a[i] = load_a(rows[i], k_begin + stage_k);
    }
    for (var i = 0u; i < B_PER_THREAD; i++) {
        next_b[i] = load_b(batch, k_begin + b_k(lane + i * THREADS), column_0 + b_column(lane + i * THREADS));
    }

    // 2 x 2 threads side by side, as some GPUs serve vectors that neighbours share in half the time.
    let thread_m = lane / 2 % 2 + lane / (2 * THREADS_N) * 2;
    let thread_n = lane % 2 + lane / 4 % (THREADS_N / 2) * 2;
    var sums: array<array<vec4<f32>, THREAD_N4>, THREAD_M>;
    for (var k_0 = k_begin; k_0 < k_end; k_0 += TILE_K) {
        for (var i = 0u; i < A_PER_THREAD; i++) {
            sh_a[(stage_k / 4) * A_STRIDE + stage_row + i * A_ROW_STEP] = vec4<f32>(next_a[i]);
        }
        for (var i = 0u; i < B_PER_THREAD; i++) {
            stage_b(lane + i * THREADS, vec4<f32>(next_b[i]));
        }
        workgroupBarrier();
        // The next tile is on its way while this one is multiplied. The last turn loads zeros from beyond K.
        for (var i = 0u; i < A_PER_THREAD; i++) {
            next_a[i] = load_a(rows[i], k_0 + TILE_K + stage_k);
        }
        for (var i = 0u; i < B_PER_THREAD; i++) {
            let v = lane + i * THREADS;
            next_b[i] = load_b(batch, k_0 + TILE_K + b_k(v), column_0 + b_column(v));
        }
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
                    // One fused multiply-add a product; a * b + ... would take a multiplication and an addition more.
                    let xy = fma(vec4<f32>(a.y), b[1][j], fma(vec4<f32>(a.x), b[0][j], sums[i][j]));
                    sums[i][j] = fma(vec4<f32>(a.w), b[3][j], fma(vec4<f32>(a.z), b[2][j], xy));
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
