// cross_entropy_merge: statistics of each row by several parts of the vocabulary, one after another, to those of all of it;
// one lane a row.
struct Params { rows: u32, parts: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<f32>;
@group(0) @binding(2) var<storage, read_write> stats: array<f32>;

const UNSEEN = -3.0e38;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if row >= params.rows {
        return;
    }
    var all = vec3(UNSEEN, 0.0, UNSEEN);
    for (var part = 0u; part < params.parts; part++) {
        let at = 3u * (part * params.rows + row);
        let largest = max(all.x, parts[at]);
        let sum = all.y * exp(all.x - largest) + parts[at + 1u] * exp(parts[at] - largest);
        // Only one part has seen the target.
        all = vec3(largest, sum, max(all.z, parts[at + 2u]));
    }
    stats[3u * row] = all.x;
    stats[3u * row + 1u] = all.y;
    stats[3u * row + 2u] = all.z;
}
