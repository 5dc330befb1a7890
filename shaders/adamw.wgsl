// adamw: one step of AdamW on items start .. start + count of a page, in place; elements before decay_end, counted
// from start, are decayed.
struct Params {
    start: u32, count: u32, decay_end: u32,
    beta1: f32, beta2: f32, epsilon: f32, weight_decay: f32, max_norm: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> p: array<Item>;
@group(0) @binding(2) var<storage, read_write> m: array<Item>;
@group(0) @binding(3) var<storage, read_write> v: array<Item>;
@group(0) @binding(4) var<storage, read> g: array<Item>;
@group(0) @binding(5) var<storage, read> norm: array<f32>;
@group(0) @binding(6) var<storage, read> hyper: array<f32>; // learning rate, 1/(1-beta1^t), 1/(1-beta2^t), factor of g
#import lib/item.wgsl
#if GAPS
@group(0) @binding(7) var<storage, read> gaps: array<vec2<u32>>;
#import lib/gaps.wgsl
#endif

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if i >= params.count {
        return;
    }
#if GAPS
    if in_gap(params.start + i) {
        return;
    }
#endif
    let factor = hyper[3];
    if factor == 0.0 {
        return;
    }
    let rate = hyper[0];
    // As a comparison and not as min(), which may turn a norm that is not a number into 1.
    let ratio = params.max_norm / (norm[0] + 1e-6);
    let gradient = g[i] * factor * select(ratio, 1.0, ratio > 1.0);
    let first = m[i] + (gradient - m[i]) * (1.0 - params.beta1);
    let second = v[i] * params.beta2 + gradient * gradient * (1.0 - params.beta2);
    let decay = select(Item(), Item(params.weight_decay), item_index(i) < Index(params.decay_end));
    let decayed = p[i] - p[i] * rate * decay;
    p[i] = decayed - rate * hyper[1] * first / (sqrt(second * hyper[2]) + params.epsilon);
    m[i] = first;
    v[i] = second;
}
