// log_probs: of every row the log-probability of its target, 0 where that is IGNORE, and lse; one lane a row.
struct Params { rows: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> stats: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> log_probs: array<f32>;
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;

const IGNORE = 0xffffffffu;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if row >= params.rows {
        return;
    }
    // The difference to the largest logit first: it is small where the two large ones are alike.
    let log_sum = log(stats[3u * row + 1u]);
    lse[row] = stats[3u * row] + log_sum;
    log_probs[row] = select((stats[3u * row + 2u] - stats[3u * row]) - log_sum, 0.0, targets[row] == IGNORE);
}
