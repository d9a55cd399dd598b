// out = f(x), or out = f(a, b): one value per invocation; reads 1 or 2 values and writes 1 per element.
#import fragments/activation
#import fragments/indexing

@group(0) @binding(1) var<storage, read> a: array<Elem>;         // (size)
#ifdef OP_ADD
@group(0) @binding(2) var<storage, read> b: array<Elem>;         // (size)
@group(0) @binding(3) var<storage, read_write> out: array<Elem>; // (size)
#else
@group(0) @binding(2) var<storage, read_write> out: array<Elem>; // (size)
#endif

@compute @workgroup_size(WORKGROUP_SIZE)
fn elementwise(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
               @builtin(local_invocation_index) lane: u32) {
    let i = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane;
    if (i >= params.size) { return; }
#ifdef OP_ADD
    out[i] = Elem(f32(a[i]) + f32(b[i]));
#else
    out[i] = Elem(activation(f32(a[i])));
#endif
}
