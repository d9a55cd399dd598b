// Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) and the scheduler's update, value by value:
//   m      = uncond + guidance_scale (text - uncond), or for several texts (Liu et al., arXiv 2206.01714)
//            uncond + guidance_scale sum_k weight_k (text_k - uncond)
//   x0     = clamp(p_x x_t + p_m m, -clip_range, clip_range)
//   x_prev = c_x x_t + c_saved x_saved + c_m m + c_h1 h1 + c_h2 h2 + c_h3 h3 + c_x0 x0 + c_noise noise
// then h_x x_t + h_m m goes to the history and x_t becomes x_prev, which scaled is the model's next input. An invocation
// does one value: reads 7 or more and writes 2 or more per element. Terms with coefficient 0 are left out, not multiplied:
// x_saved, the history and the noise hold anything, even NaN, where they are not used.
#import fragments/indexing

@group(0) @binding(1) var<storage, read> model_output: array<Elem>;      // (B or (1 + K) B, H, W, C)
@group(0) @binding(2) var<storage, read> coefficients: array<f32>;       // (16)
@group(0) @binding(3) var<storage, read> noise: array<f32>;              // (B, H, W, C)
@group(0) @binding(4) var<storage, read_write> x_t: array<f32>;          // (B, H, W, C)
@group(0) @binding(5) var<storage, read_write> x_saved: array<f32>;      // (B, H, W, C)
@group(0) @binding(6) var<storage, read_write> history: array<f32>;      // (3, B, H, W, C): h1, h2, h3
@group(0) @binding(7) var<storage, read_write> model_input: array<Elem>; // (B or (1 + K) B, H, W, at least C)
#ifdef WEIGHTED
@group(0) @binding(8) var<storage, read> weights: array<f32>;            // (K, B)
#endif

fn term(coefficient: f32, value: f32) -> f32 {
    if (coefficient == 0.0) { return 0.0; }
    return coefficient * value;
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn denoise_step(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                @builtin(local_invocation_index) lane: u32) {
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane; // of (B, H, W, C)
    let size = params.size;
    if (i >= size) { return; }

#ifdef GUIDANCE
    let uncond = f32(model_output[i]);
#ifdef WEIGHTED
    let picture = i / (size / params.batch); // 0..B-1
    var difference = 0.0;
    for (var k = 0u; k < params.num_texts; k++) {
        difference += weights[k * params.batch + picture] * (f32(model_output[(1 + k) * size + i]) - uncond);
    }
#else
    let difference = f32(model_output[size + i]) - uncond;
#endif
    let m = uncond + coefficients[GUIDANCE_SCALE] * difference;
#else
    let m = f32(model_output[i]);
#endif
    let x = x_t[i];
    let h1 = history[i];
    let h2 = history[size + i];
    let h3 = history[2 * size + i];

    let clip_range = coefficients[CLIP_RANGE];
    let x0 = clamp(term(coefficients[P_X], x) + term(coefficients[P_M], m), -clip_range, clip_range);
    let x_prev = term(coefficients[C_X], x) + term(coefficients[C_SAVED], x_saved[i]) + term(coefficients[C_M], m)
        + term(coefficients[C_H1], h1) + term(coefficients[C_H2], h2) + term(coefficients[C_H3], h3)
        + term(coefficients[C_X0], x0) + term(coefficients[C_NOISE], noise[i]);

    if (coefficients[H_X] != 0.0 || coefficients[H_M] != 0.0) {
        history[i] = term(coefficients[H_X], x) + term(coefficients[H_M], m);
        history[size + i] = h1;
        history[2 * size + i] = h2;
    }
    if (coefficients[SAVE_SAMPLE] != 0.0) { x_saved[i] = x; }
    x_t[i] = x_prev;
    let next_input = Elem(coefficients[NEXT_INPUT_SCALE] * x_prev);
    let place = i / params.channels * params.input_channels + i % params.channels;
    model_input[place] = next_input;
#ifdef GUIDANCE
    let stride = size / params.channels * params.input_channels;
#ifdef WEIGHTED
    for (var k = 1u; k <= params.num_texts; k++) { model_input[k * stride + place] = next_input; }
#else
    model_input[stride + place] = next_input;
#endif
#endif
}
