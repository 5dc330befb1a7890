// An update of parameters in place: calls update(item, learning rate, factor of the gradient) for each of this part's items.
#import lib/item.wgsl
@group(0) @binding(6) var<storage, read> told: array<f32>; // learning rate, 1/(1-beta1^t), 1/(1-beta2^t), factor
#if GAPS
@group(0) @binding(7) var<storage, read> gaps: array<vec2<u32>>;
#import lib/gaps.wgsl
#endif

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    let factor = told[3];
    if i >= params.count || factor == 0.0 {
        return;
    }
#if GAPS
    if in_gap(params.start + i) {
        return;
    }
#endif
    update(i, told[0] * params.rate, factor);
}
