// An update of parameters in place: calls update(item, step) for each of this part's items, which gives what it added; step is
// what is told: the learning rate times the part's, 1/(1-beta1^t), 1/(1-beta2^t), and the factor of the gradient. With ADDED
// y[n] is, of the n-th PART elements, the sum of the squares of that. With COPY `copy` holds in f16 (lib/halves.wgsl) params.copies
// items of p, the first of which is item params.copied of these; with PAIRS a lane takes two items, which make a word of it.
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
#if COPY
#import lib/halves.wgsl
#if PAIRS
@group(0) @binding(9) var<storage, read_write> copy: array<u32>;
fn write_copy(i: u32, to: u32) {
    copy[to / 2u] = halves(vec4(p[i], p[i + 1u], 0.0, 0.0)).x;
}
#else
@group(0) @binding(9) var<storage, read_write> copy: array<vec2<u32>>;
fn write_copy(i: u32, to: u32) {
    copy[to] = halves(p[i]);
}
#endif
#endif

// Updates an item, but for a gap's; gives the sum of the squares of what that added.
fn updated(i: u32, step: vec4<f32>, has_gap: bool) -> f32 {
#if GAPS
    if has_gap {
        if in_gap(params.start + i) {
            return 0.0;
        }
    }
#endif
    let added = update(i, step);
    return item_sum(added * added);
}

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
#else
    let has_gap = false;
#endif
#if COPY
    let copied = params.copied;
    let copies = params.copies;
#endif
    var sum = 0.0;
#if PAIRS
    for (var i = first + 2u * lane; i < end; i += 2u * WORKGROUP) {
        sum += updated(i, step, has_gap);
        if i + 1u < end {
            sum += updated(i + 1u, step, has_gap);
        }
#else
    for (var i = first + lane; i < end; i += WORKGROUP) {
        sum += updated(i, step, has_gap);
#endif
#if COPY
        // Of items before the first it wraps.
        if i - copied < copies {
            write_copy(i, i - copied);
        }
#endif
    }
#if ADDED
    let total = reduce_sum(sum, lane);
    if lane == 0u {
        y[params.run + run] = total;
    }
#endif
}
