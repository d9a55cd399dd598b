// A B, register-tiled, for GPUs: a workgroup sums a TILE_M x TILE_N tile over K, a thread THREAD_M x 4 THREAD_N4 of it.
// For each TILE_K of K it stages TILE_M x TILE_K of A and TILE_K x TILE_N of B in workgroup memory, both as vectors of 4
// values along k, so that A is read N / TILE_N times and B M / TILE_M times. For what the importing file defines, see
// fragments/product. With PAIRS, for f16, the products of a tile are summed in f16, even and odd k apart, which GPUs
// add two at once, and then added to the sums in f32.

const K4 = TILE_K / 4;
const N4 = TILE_N / 4;
const THREADS_M = TILE_M / THREAD_M;
const THREADS_N = N4 / THREAD_N4;
const THREADS = THREADS_M * THREADS_N;
const A_PER_THREAD = TILE_M * K4 / THREADS;
const A_ROW_STEP = THREADS / K4;
const A_STRIDE = TILE_M + 1; // one vector of padding spreads columns over the memory banks
const B_STRIDE = TILE_N + 1;
const BLOCKS = K4 * N4; // of B, 4 x 4
const B_PER_THREAD = (BLOCKS + THREADS - 1) / THREADS;

#ifdef PAIRS
alias Stage = vec4<Elem>;
alias Partial = vec2<Elem>;
fn add_products(a: Stage, b: Stage, sum: Partial) -> Partial {
    return fma(a.zw, b.zw, fma(a.xy, b.xy, sum));
}
#else
alias Stage = vec4<f32>;
alias Partial = f32;
fn add_products(a: Stage, b: Stage, sum: Partial) -> Partial {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}
#endif
alias Partials = array<array<array<Partial, 4>, THREAD_N4>, THREAD_M>;
alias Block = array<vec4<Elem>, 4>; // of B; 4 values along the columns, or along k with TRANSPOSE_B

var<workgroup> sh_a: array<Stage, K4 * A_STRIDE>; // [k / 4][row]
var<workgroup> sh_b: array<Stage, K4 * B_STRIDE>; // [k / 4][column % 4 * N4 + column / 4]

// The place of the i-th block within the tile, in blocks.
#ifdef TRANSPOSE_B
fn block_k(i: u32) -> u32 { return i % K4; }
fn block_column(i: u32) -> u32 { return i / K4; }
#else
fn block_k(i: u32) -> u32 { return i / N4; }
fn block_column(i: u32) -> u32 { return i % N4; }
#endif

fn load_block(batch: u32, k_0: u32, tile: u32, i: u32) -> Block {
    let k = k_0 + 4 * block_k(i);
    let column = column_at(tile, 4 * block_column(i));
    var block: Block;
    for (var j = 0u; j < 4; j++) {
#ifdef TRANSPOSE_B
        block[j] = load_b(batch, k, column + j);
#else
        block[j] = load_b(batch, k + j, column);
#endif
    }
    return block;
}

fn stage_block(i: u32, block: Block) {
    if (BLOCKS % THREADS != 0 && i >= BLOCKS) { return; }
    let first = block_k(i) * B_STRIDE + block_column(i);
    for (var j = 0u; j < 4; j++) {
#ifdef TRANSPOSE_B
        sh_b[first + j * N4] = Stage(block[j]);
#else
        sh_b[first + j * N4] = Stage(vec4<Elem>(block[0][j], block[1][j], block[2][j], block[3][j]));
#endif
    }
}

@compute @workgroup_size(THREADS)
fn product(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let row_0 = group.y * TILE_M;
    let batch = group.z % params.num_batches;
    let k_begin = (group.z / params.num_batches) * params.split_depth;
    let k_end = min(k_begin + params.split_depth, params.depth);

    // What this thread stages: vectors of A at stage_k of some rows, and blocks of B.
    let stage_k = 4 * (lane % K4);
    let stage_row = lane / K4;
    var rows: array<RowA, A_PER_THREAD>;
    for (var i = 0u; i < A_PER_THREAD; i++) {
        // Rows beyond M repeat the last one; their sums are not stored.
        rows[i] = row_a(batch, min(row_0 + stage_row + i * A_ROW_STEP, params.num_rows - 1));
    }
    var next_a: array<vec4<Elem>, A_PER_THREAD>;
    var next_b: array<Block, B_PER_THREAD>;
    for (var i = 0u; i < A_PER_THREAD; i++) { next_a[i] = load_a(rows[i], k_begin + stage_k); }
    for (var i = 0u; i < B_PER_THREAD; i++) { next_b[i] = load_block(batch, k_begin, group.x, lane + i * THREADS); }

    // 2 x 2 threads side by side, as some GPUs serve vectors that neighbours share in half the time.
    let thread_m = lane / 2 % 2 + lane / (2 * THREADS_N) * 2;
    let thread_n = lane % 2 + lane / 4 % (THREADS_N / 2) * 2;
    var sums: array<array<vec4<f32>, THREAD_N4>, THREAD_M>;
    var partials = Partials();
    for (var k_0 = k_begin; k_0 < k_end; k_0 += TILE_K) {
        for (var i = 0u; i < A_PER_THREAD; i++) {
            sh_a[(stage_k / 4) * A_STRIDE + stage_row + i * A_ROW_STEP] = Stage(next_a[i]);
        }
        for (var i = 0u; i < B_PER_THREAD; i++) { stage_block(lane + i * THREADS, next_b[i]); }
        workgroupBarrier();
        // The next tile is on its way while this one is multiplied. The last turn loads zeros from beyond K.
        let next_k = k_0 + TILE_K;
        for (var i = 0u; i < A_PER_THREAD; i++) { next_a[i] = load_a(rows[i], next_k + stage_k); }
        for (var i = 0u; i < B_PER_THREAD; i++) { next_b[i] = load_block(batch, next_k, group.x, lane + i * THREADS); }
#ifdef PAIRS
        partials = Partials();
#endif
        for (var k4 = 0u; k4 < K4; k4++) {
            var b: array<array<Stage, 4>, THREAD_N4>;
            for (var j = 0u; j < THREAD_N4; j++) {
                for (var c = 0u; c < 4; c++) { b[j][c] = sh_b[k4 * B_STRIDE + c * N4 + thread_n + j * THREADS_N]; }
            }
            for (var i = 0u; i < THREAD_M; i++) {
                let a = sh_a[k4 * A_STRIDE + thread_m + i * THREADS_M];
                for (var j = 0u; j < THREAD_N4; j++) {
                    for (var c = 0u; c < 4; c++) { partials[i][j][c] = add_products(a, b[j][c], partials[i][j][c]); }
                }
            }
        }
#ifdef PAIRS
        for (var i = 0u; i < THREAD_M; i++) {
            for (var j = 0u; j < THREAD_N4; j++) {
                let p = partials[i][j];
                sums[i][j] += vec4<f32>(f32(p[0].x), f32(p[1].x), f32(p[2].x), f32(p[3].x));
                sums[i][j] += vec4<f32>(f32(p[0].y), f32(p[1].y), f32(p[2].y), f32(p[3].y));
            }
        }
#endif
        workgroupBarrier();
    }
    for (var i = 0u; i < THREAD_M; i++) {
        let row = row_0 + thread_m + i * THREADS_M;
#ifndef PAIRS
        for (var j = 0u; j < THREAD_N4; j++) {
            let p = partials[i][j];
            sums[i][j] = vec4<f32>(p[0], p[1], p[2], p[3]);
        }
#endif
#ifdef GEGLU
        for (var j = 0u; j < THREAD_N4 / 2; j++) {
            let column = column_at(group.x, 4 * (thread_n + j * THREADS_N));
            if (row < params.num_rows && column < params.num_columns / 2) {
                store_gated(row, column, sums[i][j], sums[i][j + THREAD_N4 / 2]);
            }
        }
#else
        for (var j = 0u; j < THREAD_N4; j++) {
            let column = column_at(group.x, 4 * (thread_n + j * THREADS_N));
            if (row < params.num_rows && column < params.num_columns) {
#ifdef SPLIT
                store(group.z, row, column, sums[i][j]);
#else
                store(batch, row, column, sums[i][j]);
#endif
            }
        }
#endif
    }
}
