// The matrices that a subgroup multiplies at once, in f16 with sums in f32: Left is MATRIX_M x MATRIX_K, Right MATRIX_K x
// MATRIX_N, Result MATRIX_M x MATRIX_N. They are loaded from and stored to workgroup memory alone, which the importing file
// declares as `var<workgroup> sh: array<vec4<u32>, ...>`: edges are cut where tensors are read and written, since a
// matrix that reaches beyond its array is undefined. Offsets, and strides from row to row, are in vectors of 16 bytes:
// 8 values of Left and Right, 4 of Result. All lanes of a subgroup call together, with the same arguments.
//
// With EMULATED every lane holds whole matrices, so that a device without matrix units can test what is built on them.

#ifdef EMULATED
alias Left = array<array<f32, MATRIX_K>, MATRIX_M>;
alias Right = array<array<f32, MATRIX_N>, MATRIX_K>;
alias Result = array<array<f32, MATRIX_N>, MATRIX_M>;

fn half_at(offset: u32, i: u32) -> f32 {
    return unpack2x16float(sh[offset + i / 8][i / 2 % 4])[i % 2];
}

fn load_left(offset: u32, stride: u32) -> Left {
    var a: Left;
    for (var i = 0u; i < MATRIX_M; i++) {
        for (var k = 0u; k < MATRIX_K; k++) { a[i][k] = half_at(offset + i * stride, k); }
    }
    return a;
}

fn load_right(offset: u32, stride: u32) -> Right {
    var b: Right;
    for (var k = 0u; k < MATRIX_K; k++) {
        for (var j = 0u; j < MATRIX_N; j++) { b[k][j] = half_at(offset + k * stride, j); }
    }
    return b;
}

fn load_right_transposed(offset: u32, stride: u32) -> Right {
    var b: Right;
    for (var k = 0u; k < MATRIX_K; k++) {
        for (var j = 0u; j < MATRIX_N; j++) { b[k][j] = half_at(offset + j * stride, k); }
    }
    return b;
}

fn load_result(offset: u32, stride: u32) -> Result {
    var c: Result;
    for (var i = 0u; i < MATRIX_M; i++) {
        for (var j = 0u; j < MATRIX_N; j++) { c[i][j] = bitcast<f32>(sh[offset + i * stride + j / 4][j % 4]); }
    }
    return c;
}

fn store_result(offset: u32, stride: u32, c: Result) {
    var values = c; // naga indexes variables alone by variables
    for (var i = 0u; i < MATRIX_M; i++) {
        for (var j = 0u; j < MATRIX_N; j++) { sh[offset + i * stride + j / 4][j % 4] = bitcast<u32>(values[i][j]); }
    }
}

fn multiply_add(a: Left, b: Right, c: Result) -> Result {
    var left = a;
    var right = b;
    var sums = c;
    for (var i = 0u; i < MATRIX_M; i++) {
        for (var k = 0u; k < MATRIX_K; k++) {
            for (var j = 0u; j < MATRIX_N; j++) { sums[i][j] = fma(left[i][k], right[k][j], sums[i][j]); }
        }
    }
    return sums;
}
#else
alias Left = subgroup_matrix_left<f16, MATRIX_K, MATRIX_M>;
alias Right = subgroup_matrix_right<f16, MATRIX_N, MATRIX_K>;
alias Result = subgroup_matrix_result<f32, MATRIX_N, MATRIX_M>;

fn load_left(offset: u32, stride: u32) -> Left {
    return subgroupMatrixLoad<Left, row_major>(&sh, offset, stride);
}

fn load_right(offset: u32, stride: u32) -> Right {
    return subgroupMatrixLoad<Right, row_major>(&sh, offset, stride);
}

// The rows in memory are the matrix's columns.
fn load_right_transposed(offset: u32, stride: u32) -> Right {
    return subgroupMatrixLoad<Right, col_major>(&sh, offset, stride);
}

fn load_result(offset: u32, stride: u32) -> Result {
    return subgroupMatrixLoad<Result, row_major>(&sh, offset, stride);
}

fn store_result(offset: u32, stride: u32, c: Result) {
    subgroupMatrixStore<row_major>(&sh, offset, c, stride);
}

fn multiply_add(a: Left, b: Right, c: Result) -> Result {
    return subgroupMatrixMultiplyAccumulate(a, b, c);
}
#endif
