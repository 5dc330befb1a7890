// attention_grad_key_value_tile: attention_grad_key_value.wgsl through shared memory, for GPUs: lanes and constants as in
// attention_tile.wgsl, but that a workgroup's own rows are keys, and queries are streamed, those of all heads of the group
// in one row. dv = sum of p * dy, ds = p * (dy . v - delta), dk = scale * sum of ds * q. PARTS: so many workgroups share a
// tile's queries, each with a dk and dv of its own.
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
@group(0) @binding(7) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> dv: array<vec4<f32>>;
#import lib/operand.wgsl
#import lib/query.wgsl
#import lib/attention_tile.wgsl

const OWNS = 2u;
// The pairs: k and q, v and dy.
const KQ = 0u;
const VDY = 1u;
fn own_at(group: vec3<u32>, row: u32) -> u32 { return vector_of_key(group, min(row, params.keys - 1u)); }
fn own_vector(pair: u32, at: u32) -> vec4<f32> {
    if pair == KQ {
        return k[at];
    }
    return v[at];
}
// Queries of another document may hold no numbers, which no weight of zero undoes.
fn streamed_at(group: vec3<u32>, row: u32, end: u32) -> u32 { return vector_of_row(group, min(row, max(end, 1u) - 1u)); }
fn streamed_vector(pair: u32, at: u32) -> vec4<f32> {
    if pair == KQ {
        return q[at];
    }
    return dy[at];
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
#if PARTS
    let group = vec3(id.x / PARTS, id.yz);
    let part = id.x % PARTS;
    // Where the part's dk and dv are.
    let of_part = vector_of_key(vec3(0u, 0u, groups.z * part), 0u);
#else
    let group = id;
    let of_part = 0u;
#endif
    let j0 = group.x * ROWS;
    var begin = begin_query(group.z, j0) * GROUP;
    var end = end_query(group.z, min(j0 + ROWS, params.keys) - 1u) * GROUP;
#if PARTS
    let each = ((max(end, begin) - begin + PARTS - 1u) / PARTS + KEYS - 1u) / KEYS * KEYS;
    begin += part * each;
    end = min(begin + each, end);
#endif
    let own = lane % 16u;
    let first_key = j0 + lane / 16u * 4u * HIGH;
    let scale = params.scale;
    var dkey: Sums;
    var dvalue: Sums;
    let place = Place(group, j0, end);
    var next: Ahead;
    begin_tiles(&next, place, begin, lane);
    for (var row = begin; row < end; row += KEYS) {
        var s: Scores;
        var dp: Scores;
        products(&s, &next, KQ, place, row, CHUNK_OF + VDY, lane);
        products(&dp, &next, VDY, place, row, SLAB_OF + VDY, lane);
        for (var n = 0u; n < MINE; n++) {
            let i = row + 16u * n + own;
            let t = min(i / GROUP, params.queries - 1u);
            let last = last_seen(group.z, t);
            let from_key = first_seen(group.z, t, last);
            let stat = stats[stat_of_row(group, min(i, end - 1u))];
            for (var h = 0u; h < HIGH; h++) {
                let key = vec4(first_key + 4u * h) + vec4(0u, 1u, 2u, 3u);
                var score = s[n][h] * scale;
#if ALIBI
                score += slope(group.y * GROUP + i % GROUP) * (vec4<f32>(key) - f32(last));
#endif
                let seen = (key <= vec4(last)) & (key >= vec4(from_key)) & vec4(i < end);
                let p = select(vec4<f32>(), exp(score - stat.x), seen);
                s[n][h] = p;
                dp[n][h] = p * (dp[n][h] - stat.y) * scale;
            }
        }
        weighted(&dvalue, &s, &next, VDY, place, row, SLAB_OF + KQ, row, lane);
        weighted(&dkey, &dp, &next, KQ, place, row, CHUNK_OF + KQ, row + KEYS, lane);
    }
    for (var h = 0u; h < HIGH; h++) {
        for (var r = 0u; r < 4u; r++) {
            let key = first_key + 4u * h + r;
            let at = of_part + vector_of_key(group, key);
            for (var n = 0u; n < COLUMNS; n++) {
                if key < params.keys && 16u * n + own < C4 {
                    dk[at + 16u * n + own] = dkey[h][n][r];
                    dv[at + 16u * n + own] = dvalue[h][n][r];
                }
            }
        }
    }
}
