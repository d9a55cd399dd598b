// out = a GELU(b) with [a, b] the halves of x, in one dispatch (Chen et al. 2023, section 3.2.1).
// GELU(b) = b/2 (1 + erf(b / sqrt 2)); |error| of erf <= 1.5e-7 (fragments/activation). A workgroup takes WORKGROUP_SIZE
// chunks of out; per element it reads 2 values and writes 1, and no tensor lies between. For the same as the end of the
// product that gives x see the flag GEGLU of fragments/tile_matmul.
#import fragments/chunk_activation
#import fragments/indexing

@group(0) @binding(1) var<storage, read> x: array<Chunk>;         // (..., 2 C)
@group(0) @binding(2) var<storage, read_write> out: array<Chunk>; // (..., C)

@compute @workgroup_size(WORKGROUP_SIZE)
fn geglu(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
         @builtin(local_invocation_index) lane: u32) {
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane;
    let chunks = params.channels / CHUNK;
    if (i >= params.rows * chunks) { return; }
    let a = (i / chunks) * 2 * chunks + i % chunks;
    out[i] = Chunk(ChunkF32(x[a]) * chunk_activation(ChunkF32(x[a + chunks])));
}
