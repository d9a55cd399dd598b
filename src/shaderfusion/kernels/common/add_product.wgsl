// out += scale b, or, STRETCHED, scale a b: element by element, where each element of a stands for a block of out, and b
// is repeated. A matrix of c T + t columns is stored as (m, T, C). One element per invocation: reads 2 or 3 values, writes 1.

@group(0) @binding(1) var<storage, read_write> out: array<Elem>; // (M, N)
@group(0) @binding(2) var<storage, read> b: array<Elem>;         // (m, T, C)
#ifdef STRETCHED
@group(0) @binding(3) var<storage, read> a: array<Elem>;         // (M / block_rows, T, N / block_columns / T)
#endif

fn place(i: u32, j: u32, taps: u32, stride: u32) -> u32 {
    return (i * taps + j % taps) * stride + j / taps;
}

@compute @workgroup_size(COLUMN_LANES, ROW_LANES)
fn add_product(@builtin(global_invocation_id) id: vec3u) {
    let row = id.y;
    let j = id.x;
    if (row >= params.rows || j >= params.columns) { return; }
#ifdef STRETCHED
    let i = params.first_row + row;
    let stretched = f32(a[place(i / params.block_rows, j / params.block_columns, A_TAPS, params.a_stride)]);
    let added = stretched * f32(b[place(i % params.b_rows, j % params.b_columns, B_TAPS, params.b_stride)]);
#else
    let added = f32(b[place(row, j, B_TAPS, params.b_stride)]);
#endif
    let element = row * params.columns + j;
    out[element] = Elem(f32(out[element]) + params.scale * added);
}
