// A matrix product, out = epilogue(A B), by one of three algorithms with one interface: registers, the lanes of a CPU's
// subgroup (LANES) or a GPU's matrix units (MATRIX_UNITS).
//
// The importing file defines: struct RowA; fn row_a(batch, row) -> RowA; fn load_a(row, k) -> LoadA, values along k;
// fn load_b(batch, k, column) -> LoadB, values along the columns, or along k with TRANSPOSE_B. Both loads give 4 values, in
// Elem, with MATRIX_UNITS 8 as they are stored; k and column are multiples of that (but any column with TRANSPOSE_B);
// beyond their edge both loads give 0. With LANES, where conditions cost as much as loads, they are asked for nothing
// beyond K, and have other forms (fragments/lane_matmul).
#import fragments/product_epilogue
#ifndef SUM_SPLITS
#ifdef LANES
#import fragments/lane_matmul
#else
// The column of B at a place, 0 to TILE_N - 1, of the tile. With GEGLU the first half of the places takes columns of a,
// the second half those of b that gate them, so that a workgroup has the sums of both.
fn column_at(tile: u32, place: u32) -> u32 {
#ifdef GEGLU
    const HALF = TILE_N / 2;
    return (place / HALF) * (params.num_columns / 2) + tile * HALF + place % HALF;
#else
    return tile * TILE_N + place;
#endif
}
#ifdef MATRIX_UNITS
#import fragments/matrix_matmul
#else
#import fragments/tile_matmul
#endif
#endif
#endif
