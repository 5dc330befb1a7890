// cache_write: cache[b, position + t] = x[b, t], rows of `row` elements; rows beyond the cache are dropped.
struct Params { count: u32, row: u32, queries: u32, keys: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> cache: array<f32>;
@group(0) @binding(3) var<storage, read> position: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if i >= params.count {
        return;
    }
    let row = i / params.row;
    let t = position[0] + row % params.queries;
    if t < params.keys {
        cache[(row / params.queries * params.keys + t) * params.row + i % params.row] = x[i];
    }
}
