// out[b, y, x] = in[b, y / SCALE, x / SCALE], in integers: an invocation copies one chunk of channels to one pixel;
// reads 1 value (SCALE^2 times, from cache but for the first) and writes 1 per element.
#import fragments/chunk
#import fragments/indexing

@group(0) @binding(1) var<storage, read> x: array<Chunk>;         // (B, H, W, C)
@group(0) @binding(2) var<storage, read_write> out: array<Chunk>; // (B, SCALE H, SCALE W, C)

@compute @workgroup_size(WORKGROUP_SIZE)
fn upsample_nearest(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                    @builtin(local_invocation_index) lane: u32) {
    let chunks = params.channels / CHUNK;
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane; // of (B SCALE H, SCALE W, C / CHUNK)
    if (i >= params.rows * SCALE * params.width * SCALE * chunks) { return; }
    let pixel = i / chunks;
    let out_row = pixel / (params.width * SCALE); // [0, B SCALE H): SCALE divides an image's rows, so B needs no care
    let out_column = pixel % (params.width * SCALE);
    out[i] = x[(out_row / SCALE * params.width + out_column / SCALE) * chunks + i % chunks];
}
