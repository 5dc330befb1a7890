// attention_grad_query_tile: attention_grad_query.wgsl through shared memory, for GPUs: rows, lanes and constants as in
// attention_tile.wgsl. p = exp(s - lse), ds = p * (dy . v - delta), dq = scale * sum of ds * k.
struct Params {
    queries: u32, keys: u32, heads: u32, scale: f32, entry: u32,
#if BLOCK
    piece: u32, query_0: u32, query_1: u32, key_0: u32, key_1: u32,
#endif
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> position: array<u32>;
@group(0) @binding(7) var<storage, read_write> dq: array<vec4<f32>>;
#import lib/operand.wgsl
#import lib/query.wgsl
#import lib/attention_tile.wgsl

const OWNS = 2u;
// The pairs: q and k, dy and v.
const QK = 0u;
const DYV = 1u;
fn own_at(group: vec3<u32>, row: u32) -> u32 { return vector_of_row(group, row); }
fn own_vector(pair: u32, at: u32) -> vec4<f32> {
    if pair == QK {
        return q[at];
    }
    return dy[at];
}
fn streamed_at(group: vec3<u32>, row: u32, end: u32) -> u32 { return vector_of_key(group, min(row, end - 1u)); }
fn streamed_vector(pair: u32, at: u32) -> vec4<f32> {
    if pair == QK {
        return k[at];
    }
    return v[at];
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    // Later queries see more keys: the longest work begins first.
    let group = vec3(groups.x - 1u - id.x, id.yz);
    let rows = params.queries * GROUP;
    let row0 = group.x * ROWS;
    let begin = begin_key(group.z, row0 / GROUP);
    let end = last_seen(group.z, (min(row0 + ROWS, rows) - 1u) / GROUP) + 1u;
    let first_row = row0 + lane / 16u * 4u * HIGH;
    let own = lane % 16u;
    let scale = params.scale;
    var last: array<vec4<u32>, HIGH>;
    var from_key: array<vec4<u32>, HIGH>;
    var lse: array<vec4<f32>, HIGH>;
    var delta: array<vec4<f32>, HIGH>;
    for (var h = 0u; h < HIGH; h++) {
        for (var i = 0u; i < 4u; i++) {
            let row = min(first_row + 4u * h + i, rows - 1u);
            last[h][i] = last_seen(group.z, row / GROUP);
            from_key[h][i] = first_seen(group.z, row / GROUP, last[h][i]);
            let stat = stats[stat_of_row(group, row)];
            lse[h][i] = stat.x;
            delta[h][i] = stat.y;
        }
    }
    var acc: Sums;
    let place = Place(group, row0, end);
    var next: Ahead;
    begin_tiles(&next, place, begin, lane);
    for (var j = begin; j < end; j += KEYS) {
        var s: Scores;
        var dp: Scores;
        products(&s, &next, QK, place, j, CHUNK_OF + DYV, lane);
        products(&dp, &next, DYV, place, j, SLAB_OF + QK, lane);
        for (var n = 0u; n < MINE; n++) {
            let i = vec4(j + 16u * n + own);
            for (var h = 0u; h < HIGH; h++) {
                let score = biased(s[n][h], group.y, first_row + 4u * h, i.x, last[h]);
                let ds = exp(score - lse[h]) * (dp[n][h] - delta[h]) * scale;
                s[n][h] = select(vec4<f32>(), ds, (i <= last[h]) & (i >= from_key[h]));
            }
        }
        weighted(&acc, &s, &next, QK, place, j, CHUNK_OF + QK, j + KEYS, lane);
    }
    for (var h = 0u; h < HIGH; h++) {
        for (var i = 0u; i < 4u; i++) {
            let row = first_row + 4u * h + i;
            let at = vector_of_row(group, row);
            for (var n = 0u; n < COLUMNS; n++) {
                if row < rows && 16u * n + own < C4 {
                    dq[at + 16u * n + own] = acc[h][n][i];
                }
            }
        }
    }
}
