// The index of a workgroup in a grid made by spread_workgroups.
fn flat_workgroup(group: vec3u, grid: vec3u) -> u32 {
    return group.x + group.y * grid.x;
}
