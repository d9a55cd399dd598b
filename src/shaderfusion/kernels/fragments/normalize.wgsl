// Group normalization of a chunk of channels by statistics that are known, then the activation:
//   activation((x - mean_g) / sqrt(var_g + eps) * weight_c + bias_c)
// The importing file binds means and variances (B, G), f32, weight and bias (C), and has params num_groups,
// group_channels and, for norm_of, eps.
#import fragments/chunk_activation

struct Norm { mean: ChunkF32, scale: ChunkF32, bias: ChunkF32 } // of a chunk's channels

// The indices in (B, G) of the groups of chunk c's channels: a chunk may straddle groups. Padding channels, which come
// after the last group's, count as its.
fn groups_of(b: u32, c: u32) -> ChunkU32 {
    let groups = chunk_indices(c * CHUNK) / params.group_channels;
    return b * params.num_groups + min(groups, ChunkU32(params.num_groups - 1));
}

fn mean_of(groups: ChunkU32) -> ChunkF32 {
#ifdef VEC4
    return vec4f(means[groups.x], means[groups.y], means[groups.z], means[groups.w]);
#else
    return means[groups];
#endif
}

fn variance_of(groups: ChunkU32) -> ChunkF32 {
#ifdef VEC4
    return vec4f(variances[groups.x], variances[groups.y], variances[groups.z], variances[groups.w]);
#else
    return variances[groups];
#endif
}

fn norm_of(b: u32, c: u32) -> Norm {
    let groups = groups_of(b, c);
    let scale = inverseSqrt(variance_of(groups) + params.eps) * ChunkF32(weight[c]);
    return Norm(mean_of(groups), scale, ChunkF32(bias[c]));
}

fn apply_norm(norm: Norm, x: ChunkF32) -> ChunkF32 {
    return chunk_activation((x - norm.mean) * norm.scale + norm.bias);
}
