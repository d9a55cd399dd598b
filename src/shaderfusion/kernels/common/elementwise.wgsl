// out = f(a), out = scale a + shift, out = a + b or out = a b: four values per invocation (a tensor's memory is a multiple of 16 bytes, so the
// last four may be part padding); reads 1 or 2 values and writes 1 per element.
#import fragments/activation
#import fragments/indexing

@group(0) @binding(1) var<storage, read> a: array<vec4<Elem>>;         // (ceil(size / 4))
#ifdef BINARY
@group(0) @binding(2) var<storage, read> b: array<vec4<Elem>>;         // (ceil(size / 4))
@group(0) @binding(3) var<storage, read_write> out: array<vec4<Elem>>; // (ceil(size / 4))
#else
@group(0) @binding(2) var<storage, read_write> out: array<vec4<Elem>>; // (ceil(size / 4))
#endif

@compute @workgroup_size(WORKGROUP_SIZE)
fn elementwise(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
               @builtin(local_invocation_index) lane: u32) {
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane;
    if (i >= params.quads) { return; }
    let x = vec4f(a[i]);
#ifdef OP_ADD
    let y = x + vec4f(b[i]);
#elif OP_MULTIPLY
    let y = x * vec4f(b[i]);
#elif OP_AFFINE
    let y = params.scale * x + params.shift;
#elif OP_ACTIVATE
    let y = vec4f(activation(x.x), activation(x.y), activation(x.z), activation(x.w));
#endif
    out[i] = vec4<Elem>(y);
}
