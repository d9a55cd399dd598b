// The groups of a chunk of channels, and their means. The importing file binds means (B, G), f32, and has params
// num_groups and group_channels.
#import fragments/chunk

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
