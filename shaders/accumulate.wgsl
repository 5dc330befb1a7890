// accumulate: adds x to a range of a page, in place, or puts it there where it is the first.
struct Params { count: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> sum: array<Item>;
@group(0) @binding(2) var<storage, read> x: array<Item>;
@group(0) @binding(3) var<storage, read> keep: array<f32>;
#import lib/item.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if i >= params.count {
        return;
    }
    // What was there may be no number.
    if keep[0] == 0.0 {
        sum[i] = x[i];
    } else {
        sum[i] = sum[i] + x[i];
    }
}
