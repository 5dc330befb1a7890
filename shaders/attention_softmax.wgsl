// attention_softmax: of a block of queries, probabilities in place of their scores, and the logarithms of the softmax's
// denominators: attention in passes, for a CPU whose eight lanes lie in one subgroup. Scores are [heads, rows, keys], in tiles
// of 64 by 64, of which those that a query sees are read and written (lib/scores.wgsl). A workgroup has eight rows.
struct Params {
    queries: u32, keys: u32, heads: u32, entry: u32, scale: f32,
    query: u32, rows: u32, head: u32, // of the block: its first query, how many there are, and its first head
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> scores: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> lse: array<f32>;
#import lib/eight.wgsl
#import lib/scores.wgsl

const MASKED = -3.0e38;

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row0 = group.x * 8u;
    let end = min(row0 + 8u, params.rows);
    let keys = seen_keys(row0, lane);
    let head = params.head + group.y;
    let scale = params.scale;
    for (var row = row0; row < end; row++) {
        let t = params.query + row;
        let last = last_seen(0u, t);
        let first = first_seen(0u, t, last);
        let at = (group.y * params.rows + row) * params.keys;
        var most = vec4(MASKED);
        for (var j = keys.x; j < keys.y; j += 32u) {
            let i = keys_from(j);
            let score = scaled(scores[(at + j) / 4u], scale, head, i, last);
            most = max(most, select(vec4(MASKED), score, (i >= vec4(first)) & (i <= vec4(last))));
        }
        let mosts = eight(most);
        let four = max(max(max(mosts[0], mosts[1]), max(mosts[2], mosts[3])),
            max(max(mosts[4], mosts[5]), max(mosts[6], mosts[7])));
        let largest = max(max(four.x, four.y), max(four.z, four.w));
        var sum = vec4<f32>();
        for (var j = keys.x; j < keys.y; j += 32u) {
            let i = keys_from(j);
            let score = scaled(scores[(at + j) / 4u], scale, head, i, last);
            let p = select(vec4<f32>(), exp(score - largest), (i >= vec4(first)) & (i <= vec4(last)));
            scores[(at + j) / 4u] = p;
            sum += p;
        }
        let sums = eight(sum);
        let all = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
        let whole = (all.x + all.y) + (all.z + all.w);
        for (var j = keys.x; j < keys.y; j += 32u) {
            scores[(at + j) / 4u] /= whole;
        }
        if lane == 0u {
            lse[(params.entry * params.heads + head) * params.queries + t] = largest + log(whole);
        }
    }
}
