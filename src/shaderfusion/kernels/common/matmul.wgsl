// out = scale A B + bias + residual, for a batch of strided matrices: A is (M, K), B is (K, N), or (N, K) with
// TRANSPOSE_B. With SOFTMAX the rows of A are logits, and softmax(A) B is computed. One workgroup computes one tile of
// out; see fragments/product for what it reads and writes. Batches are (outer, inner), such as (image, attention
// head). All strides are in vectors of 4.
#import fragments/product

#ifndef SUM_SPLITS
#ifdef LANES
alias LoadA = vec2<Elem>;
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

#ifdef LANES
alias PlaceA = u32; // k

fn place_a(k: u32) -> PlaceA {
    return k;
}
#endif

fn load_a(row: RowA, k: u32) -> LoadA {
#ifdef LANES
    let values = unpack(a[(4 * row.start + k) / LOAD_SIZE]);
#else
    if (k >= params.depth) { return LoadA(); }
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

fn start_b(batch: u32) -> u32 {
    return (batch / params.num_inner) * params.b_outer + (batch % params.num_inner) * params.b_inner + params.b_first;
}

#ifdef LANES
// 4 columns: where they begin, in pairs. Those beyond the edge read the last one.
#ifdef TRANSPOSE_B
struct ColumnsB { starts: vec4u, are_there: vec4<bool> }

fn columns_b(batch: u32, column: u32) -> ColumnsB {
    let columns = column + vec4u(0, 1, 2, 3);
    let starts = 2 * (start_b(batch) + min(columns, vec4u(params.b_columns - 1)) * params.b_row);
    return ColumnsB(starts, columns < vec4u(params.b_columns));
}

fn load_b(columns: ColumnsB, k: u32) -> RowsB {
    let i = columns.starts + k / 2;
    let pairs = array<vec2<Elem>, 4>(unpack(b[i.x]), unpack(b[i.y]), unpack(b[i.z]), unpack(b[i.w]));
    let first = vec4<Elem>(pairs[0].x, pairs[1].x, pairs[2].x, pairs[3].x);
    let second = vec4<Elem>(pairs[0].y, pairs[1].y, pairs[2].y, pairs[3].y);
    return RowsB(select(vec4<Elem>(), first, columns.are_there), select(vec4<Elem>(), second, columns.are_there));
}
#else
struct ColumnsB { start: u32 }

fn columns_b(batch: u32, column: u32) -> ColumnsB {
    return ColumnsB(2 * start_b(batch) + min(column, params.b_columns - 4) / 2);
}

fn load_b(columns: ColumnsB, k: u32) -> RowsB {
    let i = columns.start + k * (2 * params.b_row);
    let j = columns.start + min(k + 1, params.depth - 1) * (2 * params.b_row);
    let second = vec4<Elem>(unpack(b[j]), unpack(b[j + 1]));
    return RowsB(vec4<Elem>(unpack(b[i]), unpack(b[i + 1])), select(vec4<Elem>(), second, k + 1 < params.depth));
}
#endif
#else
fn load_b(batch: u32, k: u32, column: u32) -> LoadB {
    if (k >= params.depth || column >= params.b_columns) { return LoadB(); }
#ifdef TRANSPOSE_B
    return b[(4 * (start_b(batch) + column * params.b_row) + k) / LOAD_SIZE];
#else
    return b[(4 * (start_b(batch) + k * params.b_row) + column) / LOAD_SIZE];
#endif
}
#endif
#endif
