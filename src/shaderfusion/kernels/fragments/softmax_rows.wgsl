// L = max_j x_j and S = sum_j exp(x_j - L) of rows of logits, by ROW_LANES lanes a row. The importing file binds
// `x: array<Chunk>` (..., N, M) and has params rows, queries (N), row_stride (M), num_columns and, with
// CAUSAL, first_query, of which the first of N rows is.
#import fragments/chunk
#import fragments/indexing
#import fragments/reduce

const LOWEST = -3.4e38; // a masked logit, near the lowest f32

struct Row { index: u32, first: u32, columns: u32 } // its first chunk, and how many columns are not masked

// The row of a lane. Lanes past the last row repeat it, to reach every barrier; their index says so.
fn row_of(workgroup: u32, lane: u32) -> Row {
    let row = workgroup * (WORKGROUP_SIZE / ROW_LANES) + lane / ROW_LANES;
    let first = min(row, params.rows - 1) * (params.row_stride / CHUNK);
#ifdef CAUSAL
    return Row(row, first, min(params.num_columns, params.first_query + row % params.queries + 1));
#else
    return Row(row, first, params.num_columns);
#endif
}

// The logits of chunk c of a row, those masked as LOWEST whatever x holds.
fn logits(row: Row, c: u32) -> ChunkF32 {
    return select(ChunkF32(LOWEST), ChunkF32(x[row.first + c]), chunk_indices(c * CHUNK) < ChunkU32(row.columns));
}

fn statistics(row: Row, lane: u32) -> vec2<f32> {
    let chunks = (row.columns + CHUNK - 1) / CHUNK; // the last may be partly masked
    var largest = ChunkF32(LOWEST);
    for (var c = lane % ROW_LANES; c < chunks; c += ROW_LANES) { largest = max(largest, logits(row, c)); }
    let L = row_max(chunk_max(largest), lane);
    var sums = ChunkF32();
    for (var c = lane % ROW_LANES; c < chunks; c += ROW_LANES) { sums += exp(logits(row, c) - L); }
    return vec2<f32>(L, row_sum(chunk_sum(sums), lane));
}
