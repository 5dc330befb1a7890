// cross_entropy_update: folds one chunk of a row's logits into (largest logit, sum of exp(logit - largest), logit of
// the target); one workgroup a row, each lane keeps its own online softmax, joined in the end in a fixed order.
struct Params { rows: u32, columns: u32, start: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<Item>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> stats: array<f32>;
#if PREVIOUS
@group(0) @binding(4) var<storage, read> previous: array<f32>;
#endif

#import lib/item.wgsl

const UNSEEN = -3.0e38;
// Items that a lane loads at once, and for all of which the sum is rescaled once.
const LOADS = 4u;
var<workgroup> largest: array<f32, WORKGROUP>;
var<workgroup> sums: array<f32, WORKGROUP>;

// The largest element so far and the sum of exp(element - largest), with some more.
fn folded(own: vec2<f32>, x: array<Item, LOADS>) -> vec2<f32> {
    var most = Item(own.x);
    for (var j = 0u; j < LOADS; j++) {
        most = max(most, x[j]);
    }
    let next = item_max(most);
    var sum = Item();
    for (var j = 0u; j < LOADS; j++) {
        sum += exp(x[j] - next);
    }
    return vec2(next, own.y * exp(own.x - next) + item_sum(sum));
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let columns = params.columns / ITEM;
    let base = row * columns;
    var own = vec2(UNSEEN, 0.0);
    var i = lane;
    for (; i + (LOADS - 1u) * WORKGROUP < columns; i += LOADS * WORKGROUP) {
        var x: array<Item, LOADS>;
        for (var j = 0u; j < LOADS; j++) {
            x[j] = logits[base + i + j * WORKGROUP];
        }
        own = folded(own, x);
    }
    // What is left, with nothing beyond it.
    if i < columns {
        var x: array<Item, LOADS>;
        for (var j = 0u; j < LOADS; j++) {
            let v = logits[base + min(i + j * WORKGROUP, columns - 1u)];
            x[j] = select(Item(UNSEEN), v, i + j * WORKGROUP < columns);
        }
        own = folded(own, x);
    }
    largest[lane] = own.x;
    sums[lane] = own.y;
    workgroupBarrier();
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        if lane < width {
            let next = max(largest[lane], largest[lane + width]);
            sums[lane] = sums[lane] * exp(largest[lane] - next) + sums[lane + width] * exp(largest[lane + width] - next);
            largest[lane] = next;
        }
        workgroupBarrier();
    }
    if lane > 0u {
        return;
    }
    var before = vec3(UNSEEN, 0.0, UNSEEN);
#if PREVIOUS
    before = vec3(previous[3u * row], previous[3u * row + 1u], previous[3u * row + 2u]);
#endif
    let next = max(before.x, largest[0]);
    let column = targets[row] - params.start;
    if targets[row] >= params.start && column < params.columns {
#if VECTOR
        before.z = logits[base + column / 4u][column % 4u];
#else
        before.z = logits[base + column];
#endif
    }
    stats[3u * row] = next;
    stats[3u * row + 1u] = before.y * exp(before.x - next) + sums[0] * exp(largest[0] - next);
    stats[3u * row + 2u] = before.z;
}
