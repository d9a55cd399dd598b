// out[b, l] = token_table[token_ids[b, l]] + position_table[l]: an invocation adds one chunk of channels; reads 2
// values and writes 1 per element. An id past the table takes its last row: a trusted module would read other memory.
#import fragments/chunk
#import fragments/indexing

@group(0) @binding(1) var<storage, read> token_ids: array<u32>;        // (B, L)
@group(0) @binding(2) var<storage, read> token_table: array<Chunk>;    // (V, C), V the size of the vocabulary
@group(0) @binding(3) var<storage, read> position_table: array<Chunk>; // (L_max, C)
@group(0) @binding(4) var<storage, read_write> out: array<Chunk>;      // (B, L, C)

@compute @workgroup_size(WORKGROUP_SIZE)
fn embedding(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
             @builtin(local_invocation_index) lane: u32) {
    let chunks = params.channels / CHUNK;
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane; // of (B, L, C / CHUNK)
    if (i >= params.tokens * chunks) { return; }
    let token = i / chunks;
    let c = i % chunks;
    let id = min(token_ids[token], params.vocabulary - 1);
    let position = token % params.prompt_tokens;
    out[i] = Chunk(ChunkF32(token_table[id * chunks + c]) + ChunkF32(position_table[position * chunks + c]));
}
