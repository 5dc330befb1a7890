// map: an elementwise expression, put in by the fuser, over items start .. start + count of the result.
struct Params { start: u32, count: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<Item>;
#import lib/item.wgsl
#hook map

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if i < params.count {
        y[i] = map(i, params.start + i);
    }
}
