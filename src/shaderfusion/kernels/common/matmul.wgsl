// out = scale A B + bias + residual, for a batch of strided matrices: A is (M, K), B is (K, N), or (N, K) with
// TRANSPOSE_B. With SOFTMAX the rows of A are logits, and softmax(A) B is computed. One workgroup computes one tile of
// out; see fragments/product for what it reads and writes. Batches are (outer, inner), such as (image, attention
// head). All strides are in vectors of 4.
#import fragments/product

#ifndef SUM_SPLITS
#ifdef LANES
alias LoadA = vec2<Elem>;
alias LoadB = vec4<Elem>;
const LOAD_SIZE = 2u;
@group(0) @binding(1) var<storage, read> a: array<Pair>; // (B, M, K / 2), at any row stride, as b
@group(0) @binding(2) var<storage, read> b: array<Pair>; // (B, K, N / 2) or (B, N, K / 2)
#elif MATRIX_UNITS
alias LoadA = vec4<u32>;
alias LoadB = vec4<u32>;
const LOAD_SIZE = 8u;
@group(0) @binding(1) var<storage, read> a: array<vec4<u32>>; // (B, M, K / 8), at any row stride, as b
@group(0) @binding(2) var<storage, read> b: array<vec4<u32>>; // (B, K, N / 8) or (B, N, K / 8)
#else
alias LoadA = vec4<Elem>;
alias LoadB = vec4<Elem>;
const LOAD_SIZE = 4u;
@group(0) @binding(1) var<storage, read> a: array<vec4<Elem>>; // (B, M, K / 4), at any row stride, as b
@group(0) @binding(2) var<storage, read> b: array<vec4<Elem>>; // (B, K, N / 4) or (B, N, K / 4)
#endif

#ifdef SOFTMAX
@group(0) @binding(3) var<storage, read> statistics: array<vec2<f32>>; // (B, M, 2): L, S of the rows of A
#endif

struct RowA { start: u32, row: u32, LS: vec2<f32> }

fn row_a(batch: u32, row: u32) -> RowA {
    let start = (batch / params.num_inner) * params.a_outer + (batch % params.num_inner) * params.a_inner
        + row * params.a_row + params.a_first;
#ifdef SOFTMAX
    return RowA(start, row, statistics[batch * params.num_rows + row]);
#else
    return RowA(start, row, vec2<f32>());
#endif
}

fn load_a(row: RowA, k: u32) -> LoadA {
    if (k >= params.depth) { return LoadA(); }
#ifdef LANES
    let values = unpack(a[(4 * row.start + k) / LOAD_SIZE]);
#else
    let values = a[(4 * row.start + k) / LOAD_SIZE];
#endif
#ifdef SOFTMAX
    return soften(row, k, values);
#else
    return values;
#endif
}

#ifdef SOFTMAX
// exp(A_ij - L_i) / S_i; keys past M, and with CAUSAL those after the query, count as 0 whatever A holds.
fn soften_score(row: RowA, k: u32, score: f32) -> f32 {
    var end = params.depth;
#ifdef CAUSAL
    end = min(end, params.first_query + row.row + 1);
#endif
    return select(0.0, exp(score - row.LS.x) / row.LS.y, k < end);
}

fn soften(row: RowA, k: u32, scores: LoadA) -> LoadA {
    var probabilities = LoadA();
#ifdef MATRIX_UNITS
    for (var i = 0u; i < 4; i++) {
        let pair = unpack2x16float(scores[i]);
        let first = k + 2 * i;
        probabilities[i] = pack2x16float(vec2(soften_score(row, first, pair.x), soften_score(row, first + 1, pair.y)));
    }
#else
    for (var i = 0u; i < LOAD_SIZE; i++) { probabilities[i] = Elem(soften_score(row, k + i, f32(scores[i]))); }
#endif
    return probabilities;
}
#endif

fn load_b(batch: u32, k: u32, column: u32) -> LoadB {
    if (k >= params.depth || column >= params.b_columns) { return LoadB(); }
    let start = (batch / params.num_inner) * params.b_outer + (batch % params.num_inner) * params.b_inner
        + params.b_first;
#ifdef LANES
#ifdef TRANSPOSE_B
    var values: vec4<Elem>;
    for (var i = 0u; i < 4 && column + i < params.b_columns; i++) {
        values[i] = unpack(b[2 * (start + (column + i) * params.b_row) + k / 2])[k % 2];
    }
    return values;
#else
    let i = 2 * (start + k * params.b_row) + column / 2;
    return vec4<Elem>(unpack(b[i]), unpack(b[i + 1]));
#endif
#else
#ifdef TRANSPOSE_B
    return b[(4 * (start + column * params.b_row) + k) / LOAD_SIZE];
#else
    return b[(4 * (start + k * params.b_row) + column) / LOAD_SIZE];
#endif
#endif
}
#endif
