// muon_update: one matrix, in place in its page, decays and moves along x.
struct Params { count: u32, rate: f32, decay: f32, adjusted: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> p: array<Item>;
@group(0) @binding(2) var<storage, read> x: array<Item>;
@group(0) @binding(3) var<storage, read> told: array<f32>; // first the learning rate, last 0 for no step
#import lib/item.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if i >= params.count || told[3] == 0.0 {
        return;
    }
    let rate = told[0] * params.rate;
    p[i] = p[i] - p[i] * rate * params.decay - told[0] * params.adjusted * x[i];
}
