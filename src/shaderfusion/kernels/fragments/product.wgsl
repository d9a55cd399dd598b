// A matrix product, out = epilogue(A B), by one of two algorithms with one interface.
//
// The importing file defines: struct RowA; fn row_a(batch, row) -> RowA; fn load_a(row, k) -> vec4<Elem>, 4 values
// along k; fn load_b(batch, k, column) -> vec4<Elem>, 4 values along the columns, or along k with TRANSPOSE_B.
// k and column are multiples of 4 (but any column with TRANSPOSE_B); beyond their edge both loads give 0.
#import fragments/product_epilogue
#ifndef SUM_SPLITS
#ifdef LANES
#import fragments/pair
#import fragments/lane_matmul
#else
#import fragments/tile_matmul
#endif
#endif
