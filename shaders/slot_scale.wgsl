// slot_scale: y[r, k] = weights[r, k] x[r]. One lane an item.
struct Params { count: u32, columns: u32, choices: u32, skip_x: u32, skip_w: u32, skip_y: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Item>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<Item>;
#import lib/item.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if i >= params.count {
        return;
    }
    let slot = i / params.columns;
    let from_x = params.skip_x + slot / params.choices * params.columns + i % params.columns;
    y[params.skip_y + i] = weights[params.skip_w + slot] * x[from_x];
}
