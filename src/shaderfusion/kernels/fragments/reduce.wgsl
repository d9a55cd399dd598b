// Sums and maxima over the ROW_LANES consecutive lanes that share a row, in a workgroup of WORKGROUP_SIZE lanes
// (ROW_LANES a multiple of 8, WORKGROUP_SIZE of ROW_LANES). All lanes must call them; each gets its row's result.
// Two barriers a call and none between calls: sh_lanes is read before the second, sh_partials after it. With SUBGROUP_ROWS
// a row's lanes are those of a subgroup, and there is none.

#ifdef SUBGROUP_ROWS
fn row_sum(value: f32, lane: u32) -> f32 {
    return subgroupAdd(value);
}

fn row_max(value: f32, lane: u32) -> f32 {
    return subgroupMax(value);
}
#else

const PARTIALS = min(32u, ROW_LANES / 8); // of a row

var<workgroup> sh_lanes: array<f32, WORKGROUP_SIZE>;
var<workgroup> sh_partials: array<f32, WORKGROUP_SIZE / ROW_LANES * PARTIALS>;

fn row_sum(value: f32, lane: u32) -> f32 {
    let row = lane / ROW_LANES;
    let k = lane % ROW_LANES;
    sh_lanes[lane] = value;
    workgroupBarrier();
    if (k < PARTIALS) {
        var partial = 0.0;
        for (var i = k; i < ROW_LANES; i += PARTIALS) { partial += sh_lanes[row * ROW_LANES + i]; }
        sh_partials[row * PARTIALS + k] = partial;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < PARTIALS; i++) { sum += sh_partials[row * PARTIALS + i]; }
    return sum;
}

fn row_max(value: f32, lane: u32) -> f32 {
    let row = lane / ROW_LANES;
    let k = lane % ROW_LANES;
    sh_lanes[lane] = value;
    workgroupBarrier();
    if (k < PARTIALS) {
        var partial = sh_lanes[row * ROW_LANES + k];
        for (var i = k; i < ROW_LANES; i += PARTIALS) { partial = max(partial, sh_lanes[row * ROW_LANES + i]); }
        sh_partials[row * PARTIALS + k] = partial;
    }
    workgroupBarrier();
    var largest = sh_partials[row * PARTIALS];
    for (var i = 1u; i < PARTIALS; i++) { largest = max(largest, sh_partials[row * PARTIALS + i]); }
    return largest;
}
#endif
