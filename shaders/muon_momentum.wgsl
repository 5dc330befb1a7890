// muon_momentum: the momentum of one matrix, in place in its page, and the direction y that follows from it.
struct Params { count: u32, momentum: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> m: array<Item>;
@group(0) @binding(2) var<storage, read> g: array<Item>;
@group(0) @binding(3) var<storage, read> told: array<f32>; // the last is the factor of the gradient, 0 for no step
@group(0) @binding(4) var<storage, read_write> y: array<Item>;
#import lib/item.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if i >= params.count {
        return;
    }
    let factor = told[3];
    if factor == 0.0 {
        y[i] = Item();
        return;
    }
    let gradient = g[i] * factor;
    let velocity = m[i] + (gradient - m[i]) * (1.0 - params.momentum);
    m[i] = velocity;
#if NESTEROV
    y[i] = gradient + (velocity - gradient) * params.momentum;
#else
    y[i] = velocity;
#endif
}
