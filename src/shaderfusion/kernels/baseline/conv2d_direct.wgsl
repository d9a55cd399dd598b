// 2D convolution, channels last, as one product over K = KERNEL_SIZE^2 C_in without storing the patches:
//   out[b, y, x, o] = sum_{i, j, c} u[b, STRIDE y + i - PADDING, STRIDE x + j - PADDING, c] weight[i, j, c, o]
// where u[b, y, x] = x[b, y / UPSAMPLE, x / UPSAMPLE], in integers, for y < in_height and x < in_width, and 0 outside;
// then the epilogue. A's row is an output pixel, B is the filter. One workgroup computes TILE_M pixels x TILE_N channels; see fragments/product for what
// it reads and writes.
#import fragments/indexing
#import fragments/product

#ifndef SUM_SPLITS
#ifdef LANES
alias LoadA = vec2<Elem>;
const LOAD_SIZE = 2u;
@group(0) @binding(1) var<storage, read> x: array<Pair>;            // (B, in_rows, in_columns, C_in / 2)
@group(0) @binding(2) var<storage, read> weight: array<Pair>;       // (KERNEL_SIZE, KERNEL_SIZE, C_in, C_out / 2)
#elif MATRIX_UNITS
alias LoadA = vec4<u32>;
alias LoadB = vec4<u32>;
const LOAD_SIZE = 8u;
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;       // (B, in_rows, in_columns, C_in / 8)
@group(0) @binding(2) var<storage, read> weight: array<vec4<u32>>;  // (KERNEL_SIZE, KERNEL_SIZE, C_in, C_out / 8)
#else
alias LoadA = vec4<Elem>;
alias LoadB = vec4<Elem>;
const LOAD_SIZE = 4u;
@group(0) @binding(1) var<storage, read> x: array<vec4<Elem>>;      // (B, in_rows, in_columns, C_in / 4)
@group(0) @binding(2) var<storage, read> weight: array<vec4<Elem>>; // (KERNEL_SIZE, KERNEL_SIZE, C_in, C_out / 4)
#endif

struct RowA { image: u32, y: i32, x: i32 } // of the patch's top left corner

fn row_a(batch: u32, row: u32) -> RowA {
    let pixel = row % params.out_pixels;
    let y = STRIDE * (pixel / params.out_width) + params.first_input_row;
    return RowA(row / params.out_pixels, i32(y) - PADDING,
                i32(STRIDE * (pixel % params.out_width)) - PADDING);
}

struct PlaceA { y: i32, x: i32, channel: u32 } // in the patch

fn place_a(k: u32) -> PlaceA {
    let tap = k / params.in_channels;
    return PlaceA(i32(tap / KERNEL_SIZE), i32(tap % KERNEL_SIZE), k % params.in_channels);
}

#ifdef LANES
fn load_a(row: RowA, place: PlaceA) -> LoadA {
#else
fn load_a(row: RowA, k: u32) -> LoadA {
    let place = place_a(k);
#endif
    let y = u32(row.y + place.y); // what is above or left of the image is far beyond it
    let column = u32(row.x + place.x);
    let is_inside = (y < params.in_height) & (column < params.in_width); // without a branch, which `&&` is
#ifndef LANES
    if (k >= params.depth || !is_inside) { return LoadA(); }
#endif
    let x_row = row.image * ceil_div(params.in_height, UPSAMPLE) + y / UPSAMPLE;
    let pixel = x_row * ceil_div(params.in_width, UPSAMPLE) + column / UPSAMPLE;
    let i = (pixel * params.in_channels + place.channel) / LOAD_SIZE;
#ifdef LANES
    return select(LoadA(), unpack(x[select(0, i, is_inside)]), is_inside);
#else
    return x[i];
#endif
}

#ifdef LANES
struct ColumnsB { start: u32 } // of 4 columns, in pairs; those beyond the edge read the last ones

fn columns_b(batch: u32, column: u32) -> ColumnsB {
    return ColumnsB(min(column, params.num_columns - 4) / 2);
}

fn load_b(columns: ColumnsB, k: u32) -> RowsB {
    let i = columns.start + k * (params.num_columns / 2);
    let j = i + params.num_columns / 2;
    return RowsB(vec4<Elem>(unpack(weight[i]), unpack(weight[i + 1])),
                 vec4<Elem>(unpack(weight[j]), unpack(weight[j + 1])));
}
#else
fn load_b(batch: u32, k: u32, column: u32) -> LoadB {
    if (k >= params.depth || column >= params.num_columns) { return LoadB(); }
    return weight[(k * params.num_columns + column) / LOAD_SIZE];
}
#endif
#endif
