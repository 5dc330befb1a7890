// sum_squares: y[p] = sum of x[i]^2 over the PART elements of part p; one workgroup a part, whose lanes load LOADS items at once.
struct Params { count: u32, parts: u32, start: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Item>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
#if GAPS
@group(0) @binding(3) var<storage, read> gaps: array<vec2<u32>>;
#import lib/gaps.wgsl
#endif
#import lib/item.wgsl
#import lib/reduce.wgsl

#if GAPS
// An item without those of its elements that lie in gaps, where anything may stand.
fn outside(v: Item, i: u32) -> Item {
    let first = params.start + ITEM * i;
#if VECTOR
    let inside = vec4(in_gap(first), in_gap(first + 1u), in_gap(first + 2u), in_gap(first + 3u));
    return select(v, Item(), inside);
#else
    return select(v, 0.0, in_gap(first));
#endif
}
#endif

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let part = group.y * groups.x + group.x;
    if part >= params.parts {
        return;
    }
    let first = part * (PART / ITEM);
    let end = min(first + PART / ITEM, params.count / ITEM);
    var sum = Item();
    var i = first + lane;
#if GAPS
    // Few parts have one: the others are not searched any further.
    if meets_gap(params.start + first * ITEM, params.start + end * ITEM) {
        for (; i < end; i += WORKGROUP) {
            let v = outside(x[i], i);
            sum += v * v;
        }
    }
#endif
    for (; i + (LOADS - 1u) * WORKGROUP < end; i += LOADS * WORKGROUP) {
        var v: array<Item, LOADS>;
        for (var j = 0u; j < LOADS; j++) {
            v[j] = x[i + j * WORKGROUP];
        }
        for (var j = 0u; j < LOADS; j++) {
            sum += v[j] * v[j];
        }
    }
    for (; i < end; i += WORKGROUP) {
        sum += x[i] * x[i];
    }
    let total = reduce_sum(item_sum(sum), lane);
    if lane == 0u {
        y[part] = total;
    }
}
