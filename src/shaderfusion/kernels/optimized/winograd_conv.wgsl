// 3x3 convolution of stride 1 and padding 1, channels last, by Winograd's F(m x m, 3x3):
//   out tile = A^T [sum_c (G g_c G^T) . (B^T d_c B)] A,  d: (m+2) x (m+2) inputs, . element by element
// (Lavin and Gray 2015, arXiv 1509.09308, section 4). For one slice of output channels and one strip of tile rows:
//   transform_filters  U[i, j] = (G g G^T)[i, j] of every filter; reads 9 and writes (m+2)^2 values of each
//   transform_input    V[i, j] = (B^T d B)[i, j] of every tile and channel; reads each input (m+2)^2 / m^2 times, and
//                      with NORM normalizes it, but not the padding, each time
//   (common/matmul)    M[i, j] = V[i, j] U[i, j], (tiles, C_in) times (C_in, C_out)
//   transform_output   out = scale A^T M A + bias + image_bias + residual; reads M once
// A workgroup takes LANES vectors of 4 channels, consecutive ones of a tile, with N threads for each: thread n takes
// column n, then, by way of workgroup memory, row n; of filters one thread takes a vector. f32 arithmetic; U, V and M
// are stored as Elem. Tile rows count through all images; of in_height rows of x, upsampled, first_input_row is the one
// below the first row of out.
#import fragments/indexing

// winograd_matrices in winograd_conv.py: A^T and B^T are exact in f32, G is rounded. All loops over them are unrolled, so
// that zeros cost nothing.
#ifdef M_2
const AT = array(
    array(1.0, 2.0, 2.0, 0.0),
    array(0.0, 2.0, -2.0, 1.0),
);
const G = array(
    array(-1.0, 0.0, 0.0),
    array(0.25, 0.25, 0.25),
    array(0.25, -0.25, 0.25),
    array(0.0, 0.0, 1.0),
);
const BT = array(
    array(-1.0, 0.0, 1.0, 0.0),
    array(0.0, 1.0, 1.0, 0.0),
    array(0.0, -1.0, 1.0, 0.0),
    array(0.0, -1.0, 0.0, 1.0),
);
#elif M_4
const AT = array(
    array(8.0, 8.0, 8.0, 2.0, 2.0, 0.0),
    array(0.0, 5.0, -5.0, 3.0, -3.0, 0.0),
    array(0.0, 3.125, 3.125, 4.5, 4.5, 0.0),
    array(0.0, 1.953125, -1.953125, 6.75, -6.75, 4.0),
);
const G = array(
    array(0.568888889, 0.0, 0.0),
    array(-0.344201681, -0.21512605, -0.134453782),
    array(-0.344201681, 0.21512605, -0.134453782),
    array(0.119514472, 0.179271709, 0.268907563),
    array(0.119514472, -0.179271709, 0.268907563),
    array(0.0, 0.0, 1.0),
);
const BT = array(
    array(0.219726562, 0.0, -0.66015625, 0.0, 0.25, 0.0),
    array(0.0, -0.3515625, -0.5625, 0.15625, 0.25, 0.0),
    array(0.0, 0.3515625, -0.5625, -0.15625, 0.25, 0.0),
    array(0.0, -0.29296875, -0.1953125, 0.75, 0.5, 0.0),
    array(0.0, 0.29296875, -0.1953125, -0.75, 0.5, 0.0),
    array(0.0, 0.219726562, 0.0, -0.66015625, 0.0, 0.25),
);
#elif M_6
const AT = array(
    array(8.0, 16.0, 16.0, 8.0, 8.0, 0.5, 0.5, 0.0),
    array(0.0, 8.0, -8.0, 8.0, -8.0, 1.0, -1.0, 0.0),
    array(0.0, 4.0, 4.0, 8.0, 8.0, 2.0, 2.0, 0.0),
    array(0.0, 2.0, -2.0, 8.0, -8.0, 4.0, -4.0, 0.0),
    array(0.0, 1.0, 1.0, 8.0, 8.0, 8.0, 8.0, 0.0),
    array(0.0, 0.5, -0.5, 8.0, -8.0, 16.0, -16.0, 8.0),
);
const G = array(
    array(-1.0, 0.0, 0.0),
    array(0.355555556, 0.177777778, 0.0888888889),
    array(0.355555556, -0.177777778, 0.0888888889),
    array(-0.222222222, -0.222222222, -0.222222222),
    array(-0.222222222, 0.222222222, -0.222222222),
    array(0.0888888889, 0.177777778, 0.355555556),
    array(0.0888888889, -0.177777778, 0.355555556),
    array(0.0, 0.0, 1.0),
);
const BT = array(
    array(-0.125, 0.0, 0.65625, 0.0, -0.65625, 0.0, 0.125, 0.0),
    array(0.0, 0.25, 0.5, -0.3125, -0.625, 0.0625, 0.125, 0.0),
    array(0.0, -0.25, 0.5, 0.3125, -0.625, -0.0625, 0.125, 0.0),
    array(0.0, 0.125, 0.125, -0.53125, -0.53125, 0.125, 0.125, 0.0),
    array(0.0, -0.125, 0.125, 0.53125, -0.53125, -0.125, 0.125, 0.0),
    array(0.0, 0.125, 0.0625, -0.625, -0.3125, 0.5, 0.25, 0.0),
    array(0.0, -0.125, 0.0625, 0.625, -0.3125, -0.5, 0.25, 0.0),
    array(0.0, -0.125, 0.0, 0.65625, 0.0, -0.65625, 0.0, 0.125),
);
#elif M_8
const AT = array(
    array(32.0, 32.0, 32.0, 32.0, 32.0, 8.0, 8.0, 0.125, 0.125, 0.0),
    array(0.0, 12.0, -12.0, 28.0, -28.0, 10.0, -10.0, 0.3125, -0.3125, 0.0),
    array(0.0, 4.5, 4.5, 24.5, 24.5, 12.5, 12.5, 0.78125, 0.78125, 0.0),
    array(0.0, 1.6875, -1.6875, 21.4375, -21.4375, 15.625, -15.625, 1.953125, -1.953125, 0.0),
    array(0.0, 0.6328125, 0.6328125, 18.7578125, 18.7578125, 19.53125, 19.53125, 4.8828125, 4.8828125, 0.0),
    array(0.0, 0.237304688, -0.237304688, 16.4130859, -16.4130859, 24.4140625, -24.4140625, 12.2070312, -12.2070312, 0.0),
    array(0.0, 0.0889892578, 0.0889892578, 14.3614502, 14.3614502, 30.5175781, 30.5175781, 30.5175781, 30.5175781, 0.0),
    array(0.0, 0.0333709717, -0.0333709717, 12.5662689, -12.5662689, 38.1469727, -38.1469727, 76.2939453, -76.2939453, 32.0),
);
const G = array(
    array(0.951089342, 0.0, 0.0),
    array(-0.654891343, -0.245584254, -0.0920940952),
    array(-0.654891343, 0.245584254, -0.0920940952),
    array(0.239087316, 0.209201401, 0.183051226),
    array(0.239087316, -0.209201401, 0.183051226),
    array(-0.241000014, -0.301250018, -0.376562522),
    array(-0.241000014, 0.301250018, -0.376562522),
    array(0.0651980715, 0.162995179, 0.407487947),
    array(0.0651980715, -0.162995179, 0.407487947),
    array(0.0, 0.0, 1.0),
);
const BT = array(
    array(0.0328570604, 0.0, -0.3028512, 0.0, 0.529792786, 0.0, -0.272460938, 0.0, 0.03125, 0.0),
    array(0.0, -0.0876188278, -0.233650208, 0.18453598, 0.492095947, -0.100524902, -0.268066406, 0.01171875, 0.03125, 0.0),
    array(0.0, 0.0876188278, -0.233650208, -0.18453598, 0.492095947, 0.100524902, -0.268066406, -0.01171875, 0.03125, 0.0),
    array(0.0, -0.0375509262, -0.0429153442, 0.29706955, 0.339508057, -0.217468262, -0.248535156, 0.02734375, 0.03125, 0.0),
    array(0.0, 0.0375509262, -0.0429153442, -0.29706955, 0.339508057, 0.217468262, -0.248535156, -0.02734375, 0.03125, 0.0),
    array(0.0, -0.0262856483, -0.0210285187, 0.225458145, 0.180366516, -0.279541016, -0.223632812, 0.0390625, 0.03125, 0.0),
    array(0.0, 0.0262856483, -0.0210285187, -0.225458145, 0.180366516, 0.279541016, -0.223632812, -0.0390625, 0.03125, 0.0),
    array(0.0, -0.0262856483, -0.0105142593, 0.238075256, 0.0952301025, -0.385742188, -0.154296875, 0.15625, 0.0625, 0.0),
    array(0.0, 0.0262856483, -0.0105142593, -0.238075256, 0.0952301025, 0.385742188, -0.154296875, -0.15625, 0.0625, 0.0),
    array(0.0, 0.0328570604, 0.0, -0.3028512, 0.0, 0.529792786, 0.0, -0.272460938, 0.0, 0.03125),
);
#endif

alias Line = array<vec4<f32>, N>; // of a tile

#ifdef PASS_FILTERS
@group(0) @binding(1) var<storage, read> filters: array<vec4<Elem>>; // (3, 3, C_in, C_out / 4)
@group(0) @binding(2) var<storage, read_write> U: array<vec4<Elem>>; // (N^2, C_in, C' / 4)

@compute @workgroup_size(LANES)
fn transform_filters(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                     @builtin(local_invocation_index) lane: u32) {
    let f = flat_workgroup(group, grid) * LANES + lane; // of (C_in, slice / 4)
    let slice4 = params.num_channels / 4;
    let c = f / slice4;
    if (c >= params.in_channels) { return; }
    var columns: array<array<vec4<f32>, 3>, 3>; // of g
    for (var tap = 0u; tap < 9; tap++) {
        let row = tap * params.in_channels + c; // of (9 C_in, C_out / 4)
        let column = params.first_channel / 4 + f % slice4;
        columns[tap % 3][tap / 3] = vec4<f32>(filters[row * (params.num_columns / 4) + column]);
    }
    let size = params.in_channels * (params.out_columns / 4);
    let out = c * (params.out_columns / 4) + params.out_first_channel / 4 + f % slice4; // of (C_in, C' / 4)
#unroll
    for (var i = 0u; i < N; i++) {
        var row: array<vec4<f32>, 3>; // of G g
#unroll
        for (var k = 0u; k < 3; k++) {
            row[k] = G[i][0] * columns[k][0] + G[i][1] * columns[k][1] + G[i][2] * columns[k][2];
        }
#unroll
        for (var j = 0u; j < N; j++) {
            U[(i * N + j) * size + out] = vec4<Elem>(G[j][0] * row[0] + G[j][1] * row[1] + G[j][2] * row[2]);
        }
    }
}
#endif

#ifdef PASS_INPUT
#ifdef NORM
#import fragments/normalize
@group(0) @binding(3) var<storage, read> means: array<f32>;          // (B, G)
@group(0) @binding(4) var<storage, read> variances: array<f32>;      // (B, G)
@group(0) @binding(5) var<storage, read> weight: array<vec4<Elem>>;  // (C_in / 4), of the group norm
@group(0) @binding(6) var<storage, read> bias: array<vec4<Elem>>;    // (C_in / 4), of the group norm
#endif
@group(0) @binding(1) var<storage, read> x: array<vec4<Elem>>;       // (B, ceil(in_height / UPSAMPLE), ceil(W / UPSAMPLE), C_in / 4)
@group(0) @binding(2) var<storage, read_write> V: array<vec4<Elem>>; // (N^2, max_tiles, C_in / 4)

var<workgroup> sh_t: array<vec4<f32>, N * N * LANES>; // (B^T d)[row][column][lane]

fn bt_times(d: Line) -> Line { // B^T d
    var sums: Line;
#unroll
    for (var i = 0u; i < N; i++) {
#unroll
        for (var k = 0u; k < N; k++) {
            if (BT[i][k] != 0.0) { sums[i] += BT[i][k] * d[k]; }
        }
    }
    return sums;
}

@compute @workgroup_size(LANES, N)
fn transform_input(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                   @builtin(local_invocation_id) local: vec3u) {
    let lane = local.x;
    let n = local.y; // the column of the tile, then its row
    let item = flat_workgroup(group, grid) * LANES + lane;
    let channels4 = params.in_channels / 4;
    let tile = item / channels4; // in the strip
    let c = item % channels4;
    if (tile < params.num_tiles) {
        let tile_row = params.first_tile_row + tile / params.tiles_x;
        let image = tile_row / params.tiles_y;
        let y_0 = i32(M * (tile_row % params.tiles_y) + params.first_input_row) - 1;
        let column = i32(M * (tile % params.tiles_x) + n) - 1;
#ifdef NORM
        let norm = norm_of(params.first_image + image, c);
#endif
        var d: Line;
        // With UPSAMPLE > 1 the nearest pixels of x, which is so many times smaller on each side.
#unroll
        for (var k = 0u; k < N; k++) {
            let y = y_0 + i32(k);
            d[k] = vec4<f32>();
            if (y >= 0 && y < i32(params.in_height) && column >= 0 && column < i32(params.width)) {
                let row = image * ceil_div(params.in_height, UPSAMPLE) + u32(y) / UPSAMPLE;
                let pixel = row * ceil_div(params.width, UPSAMPLE) + u32(column) / UPSAMPLE;
                d[k] = vec4<f32>(x[pixel * channels4 + c]);
#ifdef NORM
                d[k] = apply_norm(norm, d[k]);
#endif
            }
        }
        let column_t = bt_times(d);
#unroll
        for (var i = 0u; i < N; i++) {
            sh_t[(i * N + n) * LANES + lane] = column_t[i];
        }
    }
    workgroupBarrier();
    if (tile < params.num_tiles) {
        var t: Line;
#unroll
        for (var k = 0u; k < N; k++) {
            t[k] = sh_t[(n * N + k) * LANES + lane];
        }
        let row = bt_times(t);
#unroll
        for (var j = 0u; j < N; j++) {
            V[((n * N + j) * params.max_tiles + tile) * channels4 + c] = vec4<Elem>(row[j]);
        }
    }
}
#endif

#ifdef PASS_OUTPUT
#import fragments/product_epilogue

@group(0) @binding(1) var<storage, read> products: array<vec4<Elem>>; // M: (N^2, max_tiles, slice / 4)

var<workgroup> sh_t: array<vec4<f32>, M * N * LANES>; // (A^T M)[row][column][lane]

fn at_times(d: Line) -> array<vec4<f32>, M> { // A^T d
    var sums: array<vec4<f32>, M>;
#unroll
    for (var i = 0u; i < M; i++) {
#unroll
        for (var k = 0u; k < N; k++) {
            if (AT[i][k] != 0.0) { sums[i] += AT[i][k] * d[k]; }
        }
    }
    return sums;
}

@compute @workgroup_size(LANES, N)
fn transform_output(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                    @builtin(local_invocation_id) local: vec3u) {
    let lane = local.x;
    let n = local.y; // the column of the tile, then, below M, the row of outputs
    let item = flat_workgroup(group, grid) * LANES + lane;
    let channels4 = params.slice_channels / 4;
    let tile = item / channels4; // in the strip
    let c = item % channels4;
    if (tile < params.num_tiles) {
        var d: Line;
#unroll
        for (var k = 0u; k < N; k++) {
            d[k] = vec4<f32>(products[((k * N + n) * params.max_tiles + tile) * channels4 + c]);
        }
        let column_t = at_times(d);
#unroll
        for (var i = 0u; i < M; i++) {
            sh_t[(i * N + n) * LANES + lane] = column_t[i];
        }
    }
    workgroupBarrier();
    let tile_row = params.first_tile_row + tile / params.tiles_x;
    let image = tile_row / params.tiles_y;
    let y = M * (tile_row % params.tiles_y) + n;
    if (tile < params.num_tiles && n < M && y < params.height) {
        var t: Line;
#unroll
        for (var k = 0u; k < N; k++) {
            t[k] = sh_t[(n * N + k) * LANES + lane];
        }
        let row = at_times(t);
        let column_0 = M * (tile % params.tiles_x);
#unroll
        for (var j = 0u; j < M; j++) {
            if (column_0 + j < params.width) {
                let pixel = (image * params.height + y) * params.width + column_0 + j;
                store(0, pixel, params.first_channel + 4 * c, row[j]);
            }
        }
    }
}
#endif
