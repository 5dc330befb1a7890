// attention_softmax_grad: of a block of queries, probabilities in place of their scores, and the gradients of scores in place of
// those of probabilities: attention in passes. Both are [heads, rows, keys], in tiles of 64 by 64, of which those that a query
// sees are read and written (lib/scores.wgsl). A workgroup has eight rows, and eight lanes.
struct Params {
    queries: u32, keys: u32, heads: u32, entry: u32, scale: f32,
    query: u32, rows: u32, head: u32, // of the block: its first query, how many there are, and its first head
    gradients: u32, // where those of probabilities begin, in elements
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> scores: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> stats: array<vec2<f32>>;
#import lib/scores.wgsl

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row0 = group.x * 8u;
    let end = min(row0 + 8u, params.rows);
    let keys = seen_keys(row0, lane);
    let head = params.head + group.y;
    let scale = params.scale;
    let gradients = params.gradients;
    for (var row = row0; row < end; row++) {
        let t = params.query + row;
        let last = last_seen(0u, t);
        let first = first_seen(0u, t, last);
        let stat = stats[(params.entry * params.heads + head) * params.queries + t];
        let at = (group.y * params.rows + row) * params.keys;
        for (var j = keys.x; j < keys.y; j += 32u) {
            let i = keys_from(j);
            let score = scaled(scores[(at + j) / 4u], scale, head, i, last);
            let seen = (i >= vec4(first)) & (i <= vec4(last));
            let p = exp(score - stat.x);
            let ds = p * (scores[(gradients + at + j) / 4u] - stat.y) * scale;
            scores[(at + j) / 4u] = select(vec4<f32>(), p, seen);
            scores[(gradients + at + j) / 4u] = select(vec4<f32>(), ds, seen);
        }
    }
}
