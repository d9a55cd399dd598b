// Each timestep t as C/2 cosines and C/2 sines of t f_i, f_i = max_period^(-i / (C/2 - freq_shift)), as diffusers'
// get_timestep_embedding: an invocation writes one i's pair; reads t and writes 1 value per element.
// t f_i reaches 999, where f32 is 6e-5 coarse and a GPU's sine may be worse. So f_i is kept in turns (f_i / 2 pi), as
// an integer in units of 2^-32: its product with t overflows exactly at whole turns. Angle's error: 3e-6 at t = 999.
#import fragments/indexing

@group(0) @binding(1) var<storage, read> timestep: array<f32>;   // (N)
@group(0) @binding(2) var<storage, read_write> out: array<Elem>; // (N, C)

const TURN = 6.283185307179586;
const TWO_32 = 4294967296.0;
const ONE_RADIAN = 683565276u; // 2^32 / 2 pi

// The upper 32 of the 64 bits of a b.
fn multiply_high(a: u32, b: u32) -> u32 {
    let low = (a & 0xffff) * (b & 0xffff);
    let middle_a = (a >> 16) * (b & 0xffff) + (low >> 16);
    let middle_b = (a & 0xffff) * (b >> 16) + (middle_a & 0xffff);
    return (a >> 16) * (b >> 16) + (middle_a >> 16) + (middle_b >> 16);
}

// f_i / 2 pi = ratio^i / 2 pi, by repeated squaring.
fn turns_per_timestep(i: u32) -> u32 {
    var turns = ONE_RADIAN;
    var power = params.ratio; // ratio^1, ^2, ^4, ...
    for (var bits = i; bits != 0; bits >>= 1) {
        if ((bits & 1) != 0) { turns = multiply_high(turns, power); }
        power = multiply_high(power, power);
    }
    return turns;
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn timestep_embedding(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) grid: vec3u,
                      @builtin(local_invocation_index) lane: u32) {
    let half = params.channels / 2;
    let per_row = params.row_stride - half;
    let id = flat_workgroup(group, grid) * WORKGROUP_SIZE + lane;
    let row = id / per_row;
    let i = id % per_row;
    if (row >= params.num_rows) { return; }
    let first = row * params.row_stride;
    if (i >= half) { // the last of an odd number of channels, and padding
        if (half + i < params.row_stride) { out[first + half + i] = Elem(0.0); }
        return;
    }
    let turns = turns_per_timestep(i);
    let t = timestep[row];
    let phase = u32(t) * turns + u32(fract(t) * f32(turns)); // of whole and fractional timesteps, mod 1 turn
    let angle = f32(bitcast<i32>(phase)) * (TURN / TWO_32);  // in [-pi, pi]
#ifdef FLIP_SIN_TO_COS
    out[first + i] = Elem(cos(angle));
    out[first + half + i] = Elem(sin(angle));
#else
    out[first + i] = Elem(sin(angle));
    out[first + half + i] = Elem(cos(angle));
#endif
}
