// out = [a, b] along channels: an invocation copies one chunk of channels; reads 1 value and writes 1 per element. Rows
// may end with padding, zeros: b's, and zeros beyond it, pad out; a's is left out.
#import fragments/chunk
#import fragments/indexing

@group(0) @binding(1) var<storage, read> a: array<Chunk>;         // (B, ..., CA)
@group(0) @binding(2) var<storage, read> b: array<Chunk>;         // (B, ..., CB)
@group(0) @binding(3) var<storage, read_write> out: array<Chunk>; // (B, ..., CA + CB)

@compute @workgroup_size(WORKGROUP_SIZE)
fn concat_channels(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                   @builtin(local_invocation_index) lane: u32) {
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane; // of (B, ..., (CA + CB) / CHUNK)
    if (i >= params.size / CHUNK) { return; }
    let row = i / (params.out_row / CHUNK);
    let c = i % (params.out_row / CHUNK);
    let a_chunks = params.a_channels / CHUNK;
    let b_chunks = params.b_row / CHUNK;
    if (c < a_chunks) {
        out[i] = a[row * (params.a_row / CHUNK) + c];
    } else if (c < a_chunks + b_chunks) {
        out[i] = b[row * b_chunks + c - a_chunks];
    } else {
        out[i] = Chunk();
    }
}
