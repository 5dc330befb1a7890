// slot_dot: y[r, k] = sum over columns of x[r, k] dy[r]. One workgroup a slot.
struct Params { slots: u32, columns: u32, choices: u32, skip_x: u32, skip_dy: u32, skip_y: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Item>;
@group(0) @binding(2) var<storage, read> dy: array<Item>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
#import lib/item.wgsl
#import lib/reduce.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let slot = group.y * groups.x + group.x;
    if slot >= params.slots {
        return;
    }
    let from_x = params.skip_x + slot * params.columns;
    let from_dy = params.skip_dy + slot / params.choices * params.columns;
    var sum = Item();
    for (var i = lane; i < params.columns; i += WORKGROUP) {
        sum += x[from_x + i] * dy[from_dy + i];
    }
    let total = reduce_sum(item_sum(sum), lane);
    if lane == 0u {
        y[params.skip_y + slot] = total;
    }
}
