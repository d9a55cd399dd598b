// squares += sum x^2 over all values of a channel, and scales = magnitudes / sqrt(squares). A workgroup has one channel, of
// which it reads each value once; several calls add up the squares of a weight in slices.
#import fragments/indexing
#import fragments/reduce

@group(0) @binding(1) var<storage, read> x: array<Elem>;            // (A, G, B)
@group(0) @binding(2) var<storage, read> magnitudes: array<f32>;    // (G)
@group(0) @binding(3) var<storage, read_write> squares: array<f32>; // (G)
@group(0) @binding(4) var<storage, read_write> scales: array<f32>;  // (G)

@compute @workgroup_size(WORKGROUP_SIZE)
fn magnitude_scales(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                    @builtin(local_invocation_index) lane: u32) {
    let channel = flat_workgroup(group, grid);
    if (channel >= params.channels) { return; }
    var sum = 0.0;
    for (var e = lane; e < params.count; e += WORKGROUP_SIZE) {
        let value = f32(x[(e / params.inner * params.channels + channel) * params.inner + e % params.inner]);
        sum += value * value;
    }
    let added = row_sum(sum, lane);
    if (lane == 0) {
        let square = squares[channel] + added;
        squares[channel] = square;
        scales[channel] = 0;
        if (square > 0) { scales[channel] = magnitudes[channel] / sqrt(square); }
    }
}
