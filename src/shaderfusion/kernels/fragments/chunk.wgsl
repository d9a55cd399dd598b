// A chunk: the consecutive channels that one load moves, 4 with the flag VEC4 (channel counts divisible by 4), else 1.
// `ChunkF32(x[i])` loads and `Chunk(value)` stores either kind.
#ifdef VEC4
const CHUNK = 4u;
alias Chunk = vec4<Elem>;
alias ChunkF32 = vec4<f32>;
alias ChunkU32 = vec4<u32>;

fn chunk_sum(x: ChunkF32) -> f32 {
    return x.x + x.y + x.z + x.w;
}

fn chunk_max(x: ChunkF32) -> f32 {
    return max(max(x.x, x.y), max(x.z, x.w));
}

// The indices of a chunk's channels, the first in [0, C).
fn chunk_indices(first: u32) -> ChunkU32 {
    return first + vec4u(0, 1, 2, 3);
}
#else
const CHUNK = 1u;
alias Chunk = Elem;
alias ChunkF32 = f32;
alias ChunkU32 = u32;

fn chunk_sum(x: ChunkF32) -> f32 {
    return x;
}

fn chunk_max(x: ChunkF32) -> f32 {
    return x;
}

fn chunk_indices(first: u32) -> ChunkU32 {
    return first;
}
#endif
