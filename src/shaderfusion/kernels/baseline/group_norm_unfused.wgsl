// y = (x - mean_g) / sqrt(var_g + eps) * weight_c + bias_c (Wu and He, arXiv 1803.08494), the last step of what the
// one-dispatch group norm replaces: the mean and the variance are those of common/group_norm_statistics. An invocation
// writes one chunk of channels of PIXELS pixels; x is read and out written once, beside what the activation that follows
// reads and writes, unless it is folded into this step. The tensors hold all images, or some pixels of one.
#import fragments/indexing
#import fragments/normalize

@group(0) @binding(1) var<storage, read> x: array<Chunk>;         // (B, P, C)
@group(0) @binding(2) var<storage, read> means: array<f32>;       // (all images, G)
@group(0) @binding(3) var<storage, read> variances: array<f32>;   // (all images, G)
@group(0) @binding(4) var<storage, read> weight: array<Chunk>;    // (C)
@group(0) @binding(5) var<storage, read> bias: array<Chunk>;      // (C)
@group(0) @binding(6) var<storage, read_write> out: array<Chunk>; // (B, P, C)

@compute @workgroup_size(WORKGROUP_SIZE)
fn group_norm_unfused(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                      @builtin(local_invocation_index) lane: u32) {
    let chunks = params.channels / CHUNK;
    let parts = (params.pixels + PIXELS - 1) / PIXELS;
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane; // of (B, parts of the pixels, C / CHUNK)
    if (i >= params.batch * parts * chunks) { return; }
    let b = i / (parts * chunks);
    let norm = norm_of(params.first_image + b, i % chunks);
    let first = i / chunks % parts * PIXELS;
    let place = (b * params.pixels + first) * chunks + i % chunks;
    for (var p = 0u; p < min(PIXELS, params.pixels - first); p++) {
        out[place + p * chunks] = Chunk(apply_norm(norm, ChunkF32(x[place + p * chunks])));
    }
}
