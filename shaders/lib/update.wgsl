// An update of parameters in place: calls update(item, learning rate, factor of the gradient), which gives what it added, for
// each of this part's items. With ADDED y[n] is, of the n-th PART elements, the sum of the squares of that.
#import lib/item.wgsl
@group(0) @binding(6) var<storage, read> told: array<f32>; // learning rate, 1/(1-beta1^t), 1/(1-beta2^t), factor
#if GAPS
@group(0) @binding(7) var<storage, read> gaps: array<vec2<u32>>;
#import lib/gaps.wgsl
#endif
#if ADDED
@group(0) @binding(8) var<storage, read_write> y: array<f32>;
#import lib/reduce.wgsl
#endif

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let run = group.y * groups.x + group.x;
    let first = run * (PART / ITEM);
    if first >= params.count {
        return;
    }
    let factor = told[3];
    let end = select(first, min(first + PART / ITEM, params.count), factor != 0.0);
    var sum = 0.0;
    for (var i = first + lane; i < end; i += WORKGROUP) {
#if GAPS
        if in_gap(params.start + i) {
            continue;
        }
#endif
        let added = update(i, told[0] * params.rate, factor);
        sum += item_sum(added * added);
    }
#if ADDED
    let total = reduce_sum(sum, lane);
    if lane == 0u {
        y[params.run + run] = total;
    }
#endif
}
