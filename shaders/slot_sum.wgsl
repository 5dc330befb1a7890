// slot_sum: y[r] = sum over k of x[r, k], each times weights[r, k] with WEIGHTS; slots in order. One lane an item.
struct Params { count: u32, columns: u32, choices: u32, skip_x: u32, skip_w: u32, skip_y: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Item>;
#if WEIGHTS
@group(0) @binding(2) var<storage, read> weights: array<f32>;
#endif
@group(0) @binding(3) var<storage, read_write> y: array<Item>;
#import lib/item.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if i >= params.count {
        return;
    }
    let row = i / params.columns;
    let column = i % params.columns;
    var sum = Item();
    for (var k = 0u; k < params.choices; k++) {
        let slot = row * params.choices + k;
        let v = x[params.skip_x + slot * params.columns + column];
#if WEIGHTS
        sum += weights[params.skip_w + slot] * v;
#else
        sum += v;
#endif
    }
    y[params.skip_y + i] = sum;
}
