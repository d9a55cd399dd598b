// The index of a workgroup in a grid made by spread_workgroups.
fn flat_workgroup(group: vec3u, grid: vec3u) -> u32 {
    return group.x + group.y * grid.x;
}

fn ceil_div(a: u32, b: u32) -> u32 {
    return (a + b - 1) / b;
}
