// The end of a product: out = scale sums + bias + image_bias + residual. With SPLIT the sums of one part of K go to
// `parts` instead, and sum_splits, with SUM_SPLITS, adds the parts and stores them. With GEGLU the sums are of
// the columns [a, b], bias alone is added to them, and out = a GELU(b).
#import fragments/vector

#ifdef SPLIT
@group(0) @binding(OUT_BINDING) var<storage, read_write> parts: array<vec4<f32>>; // (S, B, M, N / 4)
#else
@group(0) @binding(OUT_BINDING) var<storage, read_write> out: array<Vector>; // (B, M, N / 4), any row stride
#endif
#ifdef BIAS
@group(0) @binding(BIAS_BINDING) var<storage, read> bias: array<Vector>; // (N / 4)
#endif
#ifdef IMAGE_BIAS
@group(0) @binding(IMAGE_BIAS_BINDING) var<storage, read> image_bias: array<Vector>; // (images, N / 4), any row stride
#endif
#ifdef RESIDUAL
#ifndef IN_PLACE
@group(0) @binding(RESIDUAL_BINDING) var<storage, read> residual: array<Vector>; // as out, which it is IN_PLACE
#endif
#endif

// The bias of 4 columns, which all rows add; 0 without one.
fn bias_at(column: u32) -> vec4<f32> {
#ifdef BIAS
    return widen(bias[column / 4]);
#else
    return vec4<f32>();
#endif
}

// Writes one vector of sums, as out = scale sums + bias + image_bias + residual.
fn store(batch: u32, row: u32, column: u32, sums: vec4<f32>) {
    store_biased(batch, row, column, sums, bias_at(column));
}

// The same, with what bias_at gives.
fn store_biased(batch: u32, row: u32, column: u32, sums: vec4<f32>, bias_of_column: vec4<f32>) {
#ifdef SPLIT
    // batch counts the splits too, outermost.
    parts[((batch * params.num_rows + row) * params.num_columns + column) / 4] = sums;
#else
    let index = (batch / params.num_inner) * params.out_outer + (batch % params.num_inner) * params.out_inner
        + row * params.out_row + params.out_first + column / 4;
    var value = params.scale * sums;
#ifdef BIAS
    value += bias_of_column;
#endif
#ifdef IMAGE_BIAS
    let image = row / params.rows_per_image;
    value += widen(image_bias[image * params.image_bias_row + params.image_bias_first + column / 4]);
#endif
#ifdef RESIDUAL
#ifdef IN_PLACE
    value += widen(out[index]);
#else
    value += widen(residual[index]);
#endif
#endif
    out[index] = narrow(value);
#endif
}

#ifdef GEGLU
#import fragments/activation

// Writes one vector of a GELU(b), from the sums of a at `column` and those of b as many columns into the second half.
fn store_gated(row: u32, column: u32, a_sums: vec4<f32>, b_sums: vec4<f32>) {
    let a = a_sums + bias_at(column);
    let b = b_sums + bias_at(params.num_columns / 2 + column);
    out[row * params.out_row + column / 4] = narrow(a * vec4<f32>(gelu(b.x), gelu(b.y), gelu(b.z), gelu(b.w)));
}
#endif

#ifdef SUM_SPLITS
@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>; // (S, B, M, N / 4)

@compute @workgroup_size(SUM_WORKGROUP_SIZE)
fn sum_splits(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
              @builtin(local_invocation_index) lane: u32) {
    let i = (group.x + group.y * grid.x) * SUM_WORKGROUP_SIZE + lane;
    let size = params.num_batches * params.num_rows * (params.num_columns / 4);
    if (i >= size) { return; }
    var sums = parts[i];
    for (var split = 1u; split < params.num_splits; split++) {
        sums += parts[split * size + i];
    }
    let row = i / (params.num_columns / 4);
    store(row / params.num_rows, row % params.num_rows, 4 * (i % (params.num_columns / 4)), sums);
}
#endif
