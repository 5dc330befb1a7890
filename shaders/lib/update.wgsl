// An update of parameters in place: calls update(item, step) for each of this part's items, which gives what it added; step is
// what is told: the learning rate times the part's, 1/(1-beta1^t), 1/(1-beta2^t), and the factor of the gradient. With ADDED
// y[n] is, of the n-th PART elements, the sum of the squares of that.
#import lib/item.wgsl
@group(0) @binding(6) var<storage, read> told: array<f32>;
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
    let step = vec4(told[0] * params.rate, told[1], told[2], told[3]);
    let end = select(first, min(first + PART / ITEM, params.count), step.w != 0.0);
#if GAPS
    // Few runs have one: the others are not searched any further.
    let has_gap = meets_gap(params.start + first, params.start + end);
#endif
    var sum = 0.0;
    for (var i = first + lane; i < end; i += WORKGROUP) {
#if GAPS
        if has_gap {
            if in_gap(params.start + i) {
                continue;
            }
        }
#endif
        let added = update(i, step);
        sum += item_sum(added * added);
    }
#if ADDED
    let total = reduce_sum(sum, lane);
    if lane == 0u {
        y[params.run + run] = total;
    }
#endif
}
