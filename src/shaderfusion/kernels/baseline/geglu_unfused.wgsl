// [a, b] = x, the halves of x along channels, as two tensors: the first dispatch of the unfused a GELU(b).
// An invocation copies one chunk of channels; reads 1 value and writes 1 per element of x.
#import fragments/chunk
#import fragments/indexing

@group(0) @binding(1) var<storage, read> x: array<Chunk>;       // (B, N, 2 C)
@group(0) @binding(2) var<storage, read_write> a: array<Chunk>; // (B, N, C)
@group(0) @binding(3) var<storage, read_write> b: array<Chunk>; // (B, N, C)

@compute @workgroup_size(WORKGROUP_SIZE)
fn split(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
         @builtin(local_invocation_index) lane: u32) {
    let chunks = params.channels / CHUNK;
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane; // of (B, N, 2 C / CHUNK)
    if (i >= params.rows * 2 * chunks) { return; }
    let row = i / (2 * chunks);
    let c = i % (2 * chunks);
    if (c < chunks) {
        a[row * chunks + c] = x[i];
    } else {
        b[row * chunks + c - chunks] = x[i];
    }
}
