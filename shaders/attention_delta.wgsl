// attention_delta: stats[b, h, t] = (lse[b, h, t], sum over c of dy[b, t, h, c] * o[b, t, h, c]); one lane a row.
struct Params { rows: u32, queries: u32, heads: u32, width: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read> o: array<f32>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> stats: array<vec2<f32>>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if row >= params.rows {
        return;
    }
    let t = row % params.queries;
    let head = row / params.queries % params.heads;
    let entry = row / (params.queries * params.heads);
    let at = ((entry * params.queries + t) * params.heads + head) * params.width;
    var sum = 0.0;
    for (var c = 0u; c < params.width; c++) {
        sum += dy[at + c] * o[at + c];
    }
    stats[row] = vec2(lse[row], sum);
}
