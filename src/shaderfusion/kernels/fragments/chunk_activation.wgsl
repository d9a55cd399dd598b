// The activation of each channel of a chunk.
#import fragments/activation
#import fragments/chunk

fn chunk_activation(x: ChunkF32) -> ChunkF32 {
#ifdef VEC4
    return ChunkF32(activation(x.x), activation(x.y), activation(x.z), activation(x.w));
#else
    return activation(x);
#endif
}
