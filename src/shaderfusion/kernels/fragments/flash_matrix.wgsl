// Attention by a GPU's matrix units: each of SUBGROUPS subgroups takes ROWS of the queries. Those and o stay in matrices;
// keys, values, scores and p pass through workgroup memory, where ROW_LANES lanes turn a row of scores into p. The importing
// file declares q, k, v, out and what both ways share.
//
// o could be scaled only on a way through memory, too. So m need not be the largest score so far: any number that is not
// too far off gives the same quotient. Where p would be above 2^MOST_LOG2_P, and only there, m is raised and o is scaled.
#import fragments/matrix_units

const THREADS = SUBGROUPS * SUBGROUP_SIZE;
const ROWS = QUERIES / SUBGROUPS;
const ROW_LANES = SUBGROUP_SIZE / ROWS; // that share a row of scores
const CHUNKS = KEYS / 8 / ROW_LANES;    // of 8 scores, of one lane
const LAST_O = D_MATRICES - 1;          // of o's columns of matrices, which pass through memory in D_BLOCKS blocks
const MOST_LOG2_P = 8.0;

const D8 = D / 8;
const ROW8 = D_STEPS * (MATRIX_K / 8); // whole matrices
const TILE_VECTORS = KEYS * D8;
const LOADS = (TILE_VECTORS + THREADS - 1) / THREADS;

// Odd strides spread rows over the memory banks.
const STRIDE = ROW8 | 1; // of q, keys and values
const S_STRIDE = KEYS / 4 + 1;
const P_STRIDE = (KEYS / 8) | 1;
const V_FIRST = KEYS * STRIDE;
const S_FIRST = 2 * V_FIRST; // of each subgroup: scores, or columns of o
const P_FIRST = S_FIRST + QUERIES * S_STRIDE;

// [key][d / 8] of k, [key][d / 8] of v, [query][key / 4] of s, [query][key / 8] of p; first of all [query][d / 8] of q.
var<workgroup> sh: array<vec4<u32>, max(P_FIRST + QUERIES * P_STRIDE, QUERIES * STRIDE)>;
var<workgroup> sh_raised: atomic<u32>; // the last tile that raised some m, by its first key

alias Loads = array<vec4<u32>, LOADS>;

// A thread's part of the KEYS rows from key_0 on.
fn load_keys(thread: u32, key_0: u32, first: u32) -> Loads {
    var loads: Loads;
    for (var i = 0u; i < LOADS; i++) {
        let index = min(thread + i * THREADS, TILE_VECTORS - 1);
        loads[i] = k[first + row_of(key_0 + index / D8) * params.k_row + index % D8];
    }
    return loads;
}

fn load_values(thread: u32, key_0: u32, first: u32) -> Loads {
    var loads: Loads;
    for (var i = 0u; i < LOADS; i++) {
        let index = min(thread + i * THREADS, TILE_VECTORS - 1);
        loads[i] = v[first + row_of(key_0 + index / D8) * params.v_row + index % D8];
    }
    return loads;
}

fn stage(thread: u32, first: u32, loads: Loads) {
    var values = loads; // naga indexes variables alone by variables
    for (var i = 0u; i < LOADS; i++) {
        let index = thread + i * THREADS;
        if (TILE_VECTORS % THREADS == 0 || index < TILE_VECTORS) {
            sh[first + index / D8 * STRIDE + index % D8] = values[i];
        }
    }
}

// Where a subgroup's matrix of scores, or of o, begins.
fn s_at(subgroup: u32, i: u32, j: u32) -> u32 {
    return S_FIRST + (subgroup * ROWS + i * MATRIX_M) * S_STRIDE + j * (MATRIX_N / 4);
}

fn floats(index: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(sh[index]);
}

fn halves(a: vec4<f32>, b: vec4<f32>) -> vec4<u32> {
    return vec4<u32>(pack2x16float(a.xy), pack2x16float(a.zw), pack2x16float(b.xy), pack2x16float(b.zw));
}

#ifdef SIZED_SUBGROUPS
@compute @workgroup_size(THREADS) @subgroup_size(SUBGROUP_SIZE)
#else
@compute @workgroup_size(THREADS)
#endif
fn flash_attention(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32,
                   @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32) {
    let row_0 = group.x * QUERIES;
    let first_q = group.z * params.queries * params.q_row + params.q_first + group.y * D8;
    let first_k = group.z * params.keys * params.k_row + params.k_first + group.y * D8;
    let first_v = group.z * params.keys * params.v_row + params.v_first + group.y * D8;
    let first_out = group.z * params.queries * params.out_row + group.y * D8;
    let key_end = min(params.keys, row_0 + QUERIES - 1 + params.diagonal); // what the last row sees

    var next_k = load_keys(thread, 0, first_k);
    for (var i = thread; i < QUERIES * ROW8; i += THREADS) {
        // Rows beyond N repeat the last one; they are not stored. Channels beyond D are zeros.
        let row = min(row_0 + i / ROW8, params.queries - 1);
        let d8 = i % ROW8;
        var values = vec4<u32>();
        if (d8 < D8) { values = q[first_q + row * params.q_row + d8]; }
        sh[i / ROW8 * STRIDE + d8] = values;
    }
    workgroupBarrier();
    var queries: array<array<Left, D_STEPS>, ROW_MATRICES>;
#unroll
    for (var i = 0u; i < ROW_MATRICES; i++) {
#unroll
        for (var d = 0u; d < D_STEPS; d++) {
            queries[i][d] = load_left((subgroup * ROWS + i * MATRIX_M) * STRIDE + d * (MATRIX_K / 8), STRIDE);
        }
    }
    workgroupBarrier();
    stage(thread, 0, next_k);
    if (ROW8 > D8) { // by one; columns of o beyond D are not stored, whatever v holds there
        for (var key = thread; key < KEYS; key += THREADS) { sh[key * STRIDE + D8] = vec4<u32>(); }
    }
    workgroupBarrier();
    next_k = load_keys(thread, KEYS, first_k);
    var next_v = load_values(thread, 0, first_v);

    let row = subgroup * ROWS + lane % ROWS;
    let part = lane / ROWS; // this lane's of the row: every ROW_LANES-th chunk
    let p_0 = P_FIRST + subgroup * ROWS * P_STRIDE;
    let seen = min(params.keys, row_0 + row + params.diagonal);
    var m = LOWEST;
    var l = 0.0; // of this lane's keys
    var o = array<array<Result, D_MATRICES>, ROW_MATRICES>();

    for (var key_0 = 0u; key_0 < key_end; key_0 += KEYS) {
#unroll
        for (var j = 0u; j < KEY_MATRICES; j++) {
            var s = array<Result, ROW_MATRICES>();
#unroll
            for (var d = 0u; d < D_STEPS; d++) {
                let keys = load_right_transposed(j * MATRIX_N * STRIDE + d * (MATRIX_K / 8), STRIDE);
#unroll
                for (var i = 0u; i < ROW_MATRICES; i++) {
                    s[i] = multiply_add(queries[i][d], keys, s[i]);
                }
            }
#unroll
            for (var i = 0u; i < ROW_MATRICES; i++) {
                store_result(s_at(subgroup, i, j), S_STRIDE, s[i]);
            }
        }
        workgroupBarrier(); // scores are written; keys, and values and p of the tile before, are read

        // This tile's values and the next one's keys; those after them are on their way while these are multiplied.
        stage(thread, 0, next_k);
        stage(thread, V_FIRST, next_v);
        next_k = load_keys(thread, key_0 + 2 * KEYS, first_k);
        next_v = load_values(thread, key_0 + KEYS, first_v);

        var p: array<vec4<f32>, 2 * CHUNKS>; // scores first
        for (var c = 0u; c < CHUNKS; c++) {
            let at = S_FIRST + row * S_STRIDE + 2 * (part + c * ROW_LANES);
            p[2 * c] = floats(at);
            p[2 * c + 1] = floats(at + 1);
        }
        if (key_0 + KEYS > min(params.keys, row_0 + params.diagonal)) {
            for (var c = 0u; c < 2 * CHUNKS; c++) {
                let key = key_0 + 8 * (part + c / 2 * ROW_LANES) + 4 * (c % 2);
                p[c] = select(vec4<f32>(LOWEST), p[c], key + vec4<u32>(0, 1, 2, 3) < vec4<u32>(seen));
            }
        }
        var largest = p[0];
        for (var c = 1u; c < 2 * CHUNKS; c++) { largest = max(largest, p[c]); }
        var score = max(max(largest.x, largest.y), max(largest.z, largest.w));
        for (var lanes = u32(ROWS); lanes < SUBGROUP_SIZE; lanes *= 2) {
            score = max(score, subgroupShuffleXor(score, lanes));
        }
        var alpha = 1.0;
        if (params.scale * (score - m) > MOST_LOG2_P) {
            alpha = exp2(params.scale * (m - score));
            m = score;
            l *= alpha;
            atomicStore(&sh_raised, key_0);
        }
        for (var c = 0u; c < 2 * CHUNKS; c++) {
            p[c] = exp2(params.scale * (p[c] - m));
            l += dot(p[c], vec4<f32>(1));
        }
        for (var c = 0u; c < CHUNKS; c++) {
            sh[P_FIRST + row * P_STRIDE + part + c * ROW_LANES] = halves(p[2 * c], p[2 * c + 1]);
        }

        // A barrier, too: p, values and the next keys are written; scores are read.
        if (workgroupUniformLoad(&sh_raised) == key_0 && key_0 > 0) {
#unroll
            for (var block = 0u; block < D_BLOCKS; block++) {
#unroll
                for (var j = 0u; j < KEY_MATRICES; j++) {
#unroll
                    for (var i = 0u; i < ROW_MATRICES; i++) {
                        if (block * KEY_MATRICES + j < D_MATRICES) {
                            store_result(s_at(subgroup, i, j), S_STRIDE, o[i][min(LAST_O, block * KEY_MATRICES + j)]);
                        }
                    }
                }
                workgroupBarrier();
                for (var c = part; c < KEYS / 4; c += ROW_LANES) {
                    let at = S_FIRST + row * S_STRIDE + c;
                    sh[at] = bitcast<vec4<u32>>(alpha * floats(at));
                }
                workgroupBarrier();
#unroll
                for (var j = 0u; j < KEY_MATRICES; j++) {
#unroll
                    for (var i = 0u; i < ROW_MATRICES; i++) {
                        if (block * KEY_MATRICES + j < D_MATRICES) {
                            o[i][min(LAST_O, block * KEY_MATRICES + j)] = load_result(s_at(subgroup, i, j), S_STRIDE);
                        }
                    }
                }
                workgroupBarrier();
            }
        }

#unroll
        for (var j = 0u; j < KEY_STEPS; j++) {
            var weights: array<Left, ROW_MATRICES>;
#unroll
            for (var i = 0u; i < ROW_MATRICES; i++) {
                weights[i] = load_left(p_0 + i * MATRIX_M * P_STRIDE + j * (MATRIX_K / 8), P_STRIDE);
            }
#unroll
            for (var d = 0u; d < D_MATRICES; d++) {
                let values = load_right(V_FIRST + j * MATRIX_K * STRIDE + d * (MATRIX_N / 8), STRIDE);
#unroll
                for (var i = 0u; i < ROW_MATRICES; i++) {
                    o[i][d] = multiply_add(weights[i], values, o[i][d]);
                }
            }
        }
    }

    for (var lanes = u32(ROWS); lanes < SUBGROUP_SIZE; lanes *= 2) { l += subgroupShuffleXor(l, lanes); }
#unroll
    for (var block = 0u; block < D_BLOCKS; block++) {
#unroll
        for (var j = 0u; j < KEY_MATRICES; j++) {
#unroll
            for (var i = 0u; i < ROW_MATRICES; i++) {
                if (block * KEY_MATRICES + j < D_MATRICES) {
                    store_result(s_at(subgroup, i, j), S_STRIDE, o[i][min(LAST_O, block * KEY_MATRICES + j)]);
                }
            }
        }
        workgroupBarrier();
        let d8_0 = block * (KEYS / 8);
        if (row_0 + row < params.queries) {
            for (var c = part; c < min(KEYS / 8, D8 - d8_0); c += ROW_LANES) {
                let at = S_FIRST + row * S_STRIDE + 2 * c;
                out[first_out + (row_0 + row) * params.out_row + d8_0 + c] = halves(floats(at) / l, floats(at + 1) / l);
            }
        }
        workgroupBarrier();
    }
}
