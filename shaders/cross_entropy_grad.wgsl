// cross_entropy_grad: dlogits = (exp(logit - lse) - [column is the target]) * scale, 0 in rows that do not count; one workgroup
// a row, whose lanes load LOADS items at once. The scale is dloss / count of a mean over rows, and -dy of the row where each
// row's log-probability is told (PER_ROW).
struct Params { rows: u32, columns: u32, start: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<Item>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> dlogits: array<WrittenItem>;
#if PER_ROW
@group(0) @binding(5) var<storage, read> dy: array<f32>;
#else
@group(0) @binding(5) var<storage, read> count: array<f32>;
@group(0) @binding(6) var<storage, read> dloss: array<f32>;
#endif

#import lib/written_item.wgsl

const IGNORE = 0xffffffffu;

// Probabilities, less 1 where the column is the target.
fn less_one(p: Item, i: u32, target_word: u32) -> Item {
    return select(p, p - 1.0, params.start + item_index(i) == Index(target_word));
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
    let whole = lse[row];
    let target_word = targets[row];
#if PER_ROW
    let slope = -dy[row];
#else
    let slope = dloss[0] / max(count[0], 1.0);
#endif
    let scale = select(slope, 0.0, target_word == IGNORE);
    var i = lane;
    for (; i + (LOADS - 1u) * WORKGROUP < columns; i += LOADS * WORKGROUP) {
        var x: array<Item, LOADS>;
        for (var j = 0u; j < LOADS; j++) {
            x[j] = logits[base + i + j * WORKGROUP];
        }
        for (var j = 0u; j < LOADS; j++) {
            let at = i + j * WORKGROUP;
            dlogits[base + at] = written_item(less_one(exp(x[j] - whole), at, target_word) * scale);
        }
    }
    for (; i < columns; i += WORKGROUP) {
        dlogits[base + i] = written_item(less_one(exp(logits[base + i] - whole), i, target_word) * scale);
    }
}
