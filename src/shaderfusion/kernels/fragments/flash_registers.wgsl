// Attention by registers: a thread keeps THREAD_QUERIES rows of m, l and o (every THREADS_K-th channel), and of each tile's
// scores THREAD_KEYS columns of the same rows. The importing file declares q, k, v, out and what both ways share.

// q and k are staged as they are stored, or widened to f32: twice the memory, but no conversion at each use.
#ifdef WIDE_Q
alias StageQ = f32;
#else
alias StageQ = Elem;
#endif
#ifdef WIDE_K
alias StageK = f32;
#else
alias StageK = Elem;
#endif
alias Pair = vec2<Elem>;

const D4 = D / 4;
const THREADS_Q = QUERIES / THREAD_QUERIES;
const THREADS_K = KEYS / THREAD_KEYS;
const THREADS = THREADS_Q * THREADS_K;
const THREAD_CHANNELS = D / THREADS_K;
const Q_STRIDE = QUERIES + 1; // one vector of padding spreads columns over the memory banks
const K_STRIDE = KEYS + 1;
const TILE_VECTORS = KEYS * D4;
const LOADS = (TILE_VECTORS + THREADS - 1) / THREADS;
const BLOCKS = KEYS / 4 * D4; // of V, 4 keys x 4 channels
const BLOCK_LOADS = (BLOCKS + THREADS - 1) / THREADS;
// p v is summed as Elem, in pairs, which GPUs add at once, and after RUN vectors of 4 keys added to o in f32. In f16
// the error grows to that of storing p in f16, and |v| must be at most 8,188: 8 products, as p <= 1.
const RUN = 4u;

var<workgroup> sh_q: array<vec4<StageQ>, D4 * Q_STRIDE>;            // [d / 4][query], 4 channels
var<workgroup> sh_k: array<vec4<StageK>, D4 * K_STRIDE>;            // [d / 4][key_place], 4 channels
var<workgroup> sh_v: array<vec4<Elem>, KEYS / 4 * D>;               // [key / 4][channel place], 4 keys
var<workgroup> sh_p: array<vec4<Elem>, KEYS / 4 * Q_STRIDE>;        // [key / 4][query], 4 keys
var<workgroup> sh_rows: array<f32, QUERIES * THREADS_K>;            // [query][thread_k]

// A thread's j-th key is 4 consecutive ones for each 4 j, so that it writes p by vectors; its place is thread_k +
// THREADS_K j, so that neighbouring threads read neighbouring vectors of sh_k.
fn key_of(thread_k: u32, j: u32) -> u32 {
    return (j / 4) * 4 * THREADS_K + 4 * thread_k + j % 4;
}
fn key_place(key: u32) -> u32 {
    return key / (4 * THREADS_K) * (4 * THREADS_K) + key % 4 * THREADS_K + key / 4 % THREADS_K;
}

// The i-th vector of K that thread `lane` stages. Neighbouring lanes read neighbouring memory, of V too.
struct Spot { index: u32, key: u32, d4: u32 }
fn spot_k(lane: u32, i: u32) -> Spot {
    let index = lane + i * THREADS;
    return Spot(index, index / D4, index % D4);
}

fn load_k(lane: u32, i: u32, key_0: u32, first: u32) -> vec4<Elem> {
    let spot = spot_k(lane, i);
    return k[first + row_of(key_0 + spot.key) * params.k_row + spot.d4];
}

fn stage_k(lane: u32, i: u32, values: vec4<Elem>) {
    let spot = spot_k(lane, i);
    if (TILE_VECTORS % THREADS == 0 || spot.index < TILE_VECTORS) {
        sh_k[spot.d4 * K_STRIDE + key_place(spot.key)] = vec4<StageK>(values);
    }
}

// 4 keys by 4 channels of V: [key % 4], 4 channels. Threads write whole vectors, as WGSL lets the write of one
// component touch the others.
alias Block = array<vec4<Elem>, 4>;

fn load_v(lane: u32, i: u32, key_0: u32, first: u32) -> Block {
    let index = lane + i * THREADS;
    let key = key_0 + index / D4 * 4;
    var block: Block;
    for (var j = 0u; j < 4; j++) { block[j] = v[first + row_of(key + j) * params.v_row + index % D4]; }
    return block;
}

// Transposes: vectors of 4 channels to vectors of 4 keys. Channel d is at place d % 4 * D4 + d / 4.
fn stage_v(lane: u32, i: u32, block: Block) {
    let index = lane + i * THREADS;
    if (BLOCKS % THREADS == 0 || index < BLOCKS) {
        let place = index / D4 * D + index % D4;
        for (var c = 0u; c < 4; c++) {
            sh_v[place + c * D4] = vec4<Elem>(block[0][c], block[1][c], block[2][c], block[3][c]);
        }
    }
}

fn dot_add(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

@compute @workgroup_size(THREADS)
fn flash_attention(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let row_0 = group.x * QUERIES;
    let first_q = group.z * params.queries * params.q_row + params.q_first + group.y * D4;
    let first_k = group.z * params.keys * params.k_row + params.k_first + group.y * D4;
    let first_v = group.z * params.keys * params.v_row + params.v_first + group.y * D4;
    let first_out = group.z * params.queries * params.out_row + group.y * D4;
    let key_end = min(params.keys, row_0 + QUERIES - 1 + params.diagonal); // what the last row sees
#ifdef INTERLEAVED
    // 2 x 2 threads side by side, as some GPUs serve vectors that neighbours share in half the time.
    let thread_q = lane / 2 % 2 + lane / (2 * THREADS_K) * 2;
    let thread_k = lane % 2 + lane / 4 % (THREADS_K / 2) * 2;
#else
    let thread_q = lane / THREADS_K;
    let thread_k = lane % THREADS_K;
#endif

    for (var i = lane; i < QUERIES * D4; i += THREADS) {
        // Rows beyond N repeat the last one; they are not stored.
        let row = min(row_0 + i / D4, params.queries - 1);
        sh_q[i % D4 * Q_STRIDE + i / D4] = vec4<StageQ>(q[first_q + row * params.q_row + i % D4]);
    }
    for (var i = 0u; i < LOADS; i++) {
        stage_k(lane, i, load_k(lane, i, 0, first_k));
    }
    workgroupBarrier();

    var m: array<f32, THREAD_QUERIES>; // of the row, in units of q k^T
    var l: array<f32, THREAD_QUERIES>; // of this thread's keys
    var o: array<array<f32, THREAD_CHANNELS>, THREAD_QUERIES>;
    for (var i = 0u; i < THREAD_QUERIES; i++) { m[i] = LOWEST; }

    for (var key_0 = 0u; key_0 < key_end; key_0 += KEYS) {
        // This tile's values and the next one's keys are on their way while the scores are summed.
        var next_k: array<vec4<Elem>, LOADS>;
        var this_v: array<Block, BLOCK_LOADS>;
        for (var i = 0u; i < LOADS; i++) { next_k[i] = load_k(lane, i, key_0 + KEYS, first_k); }
        for (var i = 0u; i < BLOCK_LOADS; i++) { this_v[i] = load_v(lane, i, key_0, first_v); }

        var s: array<array<f32, THREAD_KEYS>, THREAD_QUERIES>;
        for (var i = 0u; i < THREAD_QUERIES; i++) {
            for (var j = 0u; j < THREAD_KEYS; j++) { s[i][j] = 0.0; }
        }
        for (var d4 = 0u; d4 < D4; d4++) {
            var keys: array<vec4<f32>, THREAD_KEYS>;
            for (var j = 0u; j < THREAD_KEYS; j++) {
                keys[j] = vec4<f32>(sh_k[d4 * K_STRIDE + thread_k + j * THREADS_K]);
            }
            for (var i = 0u; i < THREAD_QUERIES; i++) {
                let query = vec4<f32>(sh_q[d4 * Q_STRIDE + thread_q + i * THREADS_Q]);
                for (var j = 0u; j < THREAD_KEYS; j++) { s[i][j] = dot_add(query, keys[j], s[i][j]); }
            }
        }
        if (key_0 + KEYS > min(params.keys, row_0 + params.diagonal)) {
            for (var i = 0u; i < THREAD_QUERIES; i++) {
                let seen = min(params.keys, row_0 + thread_q + i * THREADS_Q + params.diagonal);
                for (var j = 0u; j < THREAD_KEYS; j++) {
                    s[i][j] = select(LOWEST, s[i][j], key_0 + key_of(thread_k, j) < seen);
                }
            }
        }

        for (var i = 0u; i < THREAD_QUERIES; i++) {
            var largest = s[i][0];
            for (var j = 1u; j < THREAD_KEYS; j++) { largest = max(largest, s[i][j]); }
            sh_rows[(thread_q + i * THREADS_Q) * THREADS_K + thread_k] = largest;
        }
        workgroupBarrier(); // sh_rows is written; sh_k, and the last tile's sh_v and sh_p, are read
        for (var i = 0u; i < LOADS; i++) { stage_k(lane, i, next_k[i]); }
        for (var i = 0u; i < BLOCK_LOADS; i++) { stage_v(lane, i, this_v[i]); }
        for (var i = 0u; i < THREAD_QUERIES; i++) {
            let row = thread_q + i * THREADS_Q;
            var m_new = m[i];
            for (var t = 0u; t < THREADS_K; t++) { m_new = max(m_new, sh_rows[row * THREADS_K + t]); }
            let alpha = exp2(params.scale * (m[i] - m_new));
            m[i] = m_new;
            l[i] *= alpha;
            for (var j = 0u; j < THREAD_CHANNELS; j++) { o[i][j] *= alpha; }
            for (var j = 0u; j < THREAD_KEYS; j++) {
                s[i][j] = exp2(params.scale * (s[i][j] - m_new));
                l[i] += s[i][j];
            }
            for (var j = 0u; j < THREAD_KEYS; j += 4) {
                let p = vec4<f32>(s[i][j], s[i][j + 1], s[i][j + 2], s[i][j + 3]);
                sh_p[key_of(thread_k, j) / 4 * Q_STRIDE + row] = vec4<Elem>(p);
            }
        }
        workgroupBarrier(); // sh_k, sh_v and sh_p are written; sh_rows is read

        for (var run = 0u; run < KEYS / 4; run += RUN) {
            var sums: array<array<Pair, THREAD_CHANNELS>, THREAD_QUERIES>;
            for (var i = 0u; i < THREAD_QUERIES; i++) {
                for (var j = 0u; j < THREAD_CHANNELS; j++) { sums[i][j] = Pair(); }
            }
            for (var key4 = run; key4 < run + RUN; key4++) {
                var values: array<vec4<Elem>, THREAD_CHANNELS>;
                for (var j = 0u; j < THREAD_CHANNELS; j++) { values[j] = sh_v[key4 * D + thread_k + j * THREADS_K]; }
                for (var i = 0u; i < THREAD_QUERIES; i++) {
                    let p = sh_p[key4 * Q_STRIDE + thread_q + i * THREADS_Q];
                    for (var j = 0u; j < THREAD_CHANNELS; j++) {
                        sums[i][j] = fma(p.zw, values[j].zw, fma(p.xy, values[j].xy, sums[i][j]));
                    }
                }
            }
            for (var i = 0u; i < THREAD_QUERIES; i++) {
                for (var j = 0u; j < THREAD_CHANNELS; j++) { o[i][j] += f32(sums[i][j].x) + f32(sums[i][j].y); }
            }
        }
    }

    for (var i = 0u; i < THREAD_QUERIES; i++) {
        sh_rows[(thread_q + i * THREADS_Q) * THREADS_K + thread_k] = l[i];
    }
    workgroupBarrier();
    for (var i = 0u; i < THREAD_QUERIES; i++) {
        let row = thread_q + i * THREADS_Q;
        var l_row = 0.0;
        for (var t = 0u; t < THREADS_K; t++) { l_row += sh_rows[row * THREADS_K + t]; }
        if (row_0 + row < params.queries) {
            let first = 4 * (first_out + (row_0 + row) * params.out_row);
            for (var j = 0u; j < THREAD_CHANNELS; j++) {
                let place = thread_k + j * THREADS_K;
                out[first + place % D4 * 4 + place / D4] = Elem(o[i][j] / l_row);
            }
        }
    }
}
