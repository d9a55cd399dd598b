// The pointwise nonlinearities, in f32.

fn silu(x: f32) -> f32 {
    return x / (1.0 + exp(-x));
}

// x sigmoid(1.702 x): CLIP's approximation of GELU.
fn quick_gelu(x: f32) -> f32 {
    return x / (1.0 + exp(-1.702 * x));
}

// WGSL has no erf. Abramowitz and Stegun 7.1.26, |error| <= 1.5e-7 in exact arithmetic.
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.3275911 * abs(x));
    let poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(x) * (1.0 - poly * exp(-x * x));
}

fn gelu(x: f32) -> f32 {
    return 0.5 * x * (1.0 + erf(x * 0.7071067811865476));
}

// WGSL may compute tanh as sinh / cosh, which are infinite for large x. At 10 it is 1 in f32.
fn safe_tanh(x: f32) -> f32 {
    return tanh(clamp(x, -10.0, 10.0));
}

fn activation(x: f32) -> f32 {
#ifdef ACTIVATION_SILU
    return silu(x);
#elif ACTIVATION_QUICK_GELU
    return quick_gelu(x);
#elif ACTIVATION_GELU
    return gelu(x);
#elif ACTIVATION_RELU
    return max(x, 0.0);
#elif ACTIVATION_TANH
    return safe_tanh(x);
#else
    return x;
#endif
}
