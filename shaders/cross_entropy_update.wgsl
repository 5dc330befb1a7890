// cross_entropy_update: folds one chunk of a row's logits into (largest logit, sum of exp(logit - largest), logit of
// the target); one workgroup a row, each lane keeps its own online softmax, joined in the end in a fixed order.
struct Params { rows: u32, columns: u32, start: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> stats: array<f32>;
#if PREVIOUS
@group(0) @binding(4) var<storage, read> previous: array<f32>;
#endif

const UNSEEN = -3.0e38;
var<workgroup> largest: array<f32, WORKGROUP>;
var<workgroup> sums: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.columns;
    var m = UNSEEN;
    var sum = 0.0;
    for (var i = lane; i < params.columns; i += 4u * WORKGROUP) {
        // Four at a time, so that the sum is rescaled once for all of them.
        var x = vec4(UNSEEN);
        x.x = logits[base + i];
        if i + WORKGROUP < params.columns { x.y = logits[base + i + WORKGROUP]; }
        if i + 2u * WORKGROUP < params.columns { x.z = logits[base + i + 2u * WORKGROUP]; }
        if i + 3u * WORKGROUP < params.columns { x.w = logits[base + i + 3u * WORKGROUP]; }
        let next = max(m, max(max(x.x, x.y), max(x.z, x.w)));
        let p = exp(x - next);
        sum = sum * exp(m - next) + (p.x + p.y) + (p.z + p.w);
        m = next;
    }
    largest[lane] = m;
    sums[lane] = sum;
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
        before.z = logits[base + column];
    }
    stats[3u * row] = next;
    stats[3u * row + 1u] = before.y * exp(before.x - next) + sums[0] * exp(largest[0] - next);
    stats[3u * row + 2u] = before.z;
}
