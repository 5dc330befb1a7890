// log_probs_grad: dlogits = ([column is the target] - exp(logit - lse)) * dy of the row, 0 in rows that do not count; one
// workgroup a row.
struct Params { rows: u32, columns: u32, start: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
@group(0) @binding(5) var<storage, read_write> dlogits: array<f32>;

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
    let scale = select(dy[row], 0.0, target_word == IGNORE);
    for (var i = lane; i < params.columns; i += WORKGROUP) {
        let p = exp(logits[base + i] - lse[row]);
        dlogits[base + i] = select(-p, 1.0 - p, params.start + i == target_word) * scale;
    }
}
