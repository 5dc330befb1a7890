// cross_entropy_grad: dlogits = (exp(logit - lse) - [column is the target]) * scale, 0 in rows that do not count; one workgroup
// a row. The scale is dloss / count of a mean over rows, and -dy of the row where each row's log-probability is told (PER_ROW).
struct Params { rows: u32, columns: u32, start: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> dlogits: array<f32>;
#if PER_ROW
@group(0) @binding(5) var<storage, read> dy: array<f32>;
#else
@group(0) @binding(5) var<storage, read> count: array<f32>;
@group(0) @binding(6) var<storage, read> dloss: array<f32>;
#endif

const IGNORE = 0xffffffffu;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.columns;
    let target_word = targets[row];
#if PER_ROW
    let slope = -dy[row];
#else
    let slope = dloss[0] / max(count[0], 1.0);
#endif
    let scale = select(slope, 0.0, target_word == IGNORE);
    for (var i = lane; i < params.columns; i += WORKGROUP) {
        let p = exp(logits[base + i] - lse[row]);
        dlogits[base + i] = select(p, p - 1.0, params.start + i == target_word) * scale;
    }
}
