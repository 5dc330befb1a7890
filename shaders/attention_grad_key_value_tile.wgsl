// attention_grad_key_value_tile: attention_grad_key_value.wgsl through shared memory, for GPUs: lanes and constants as in
// attention_tile.wgsl, but that a workgroup makes ROWS keys, and KEYS is how many queries are staged at a time, those of
// all heads of the group in one row. dv = sum of p * dy, ds = p * (dy . v - delta), dk = scale * sum of ds * q.
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

var<workgroup> tile_k: array<Staged, ROWS * STEP>;
var<workgroup> tile_v: array<Staged, ROWS * STEP>;
var<workgroup> tile_q: array<Staged, KEYS * STEP>;
var<workgroup> tile_dy: array<Staged, KEYS * STEP>;
// Probabilities of four keys, and the gradients of their scores.
var<workgroup> tile_p: array<Staged, KEYS * FOURS>;
var<workgroup> tile_s: array<Staged, KEYS * FOURS>;

// Queries from `row` on, and their gradients.
fn stage_queries(entry: u32, kv_head: u32, row: u32, chunk: u32, lane: u32) {
    for (var e = lane; e < KEYS * CHUNK; e += LANES) {
        let c = chunk * CHUNK + e % CHUNK;
        let at = vector_of_row(entry, kv_head, row + e / CHUNK) + min(c, C4 - 1u);
        let to = e / CHUNK * STEP + e % CHUNK;
        tile_q[to] = Staged(select(vec4<f32>(), operand4(q[at]), c < C4));
        tile_dy[to] = Staged(select(vec4<f32>(), operand4(dy[at]), c < C4));
    }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let j0 = group.x * ROWS;
    let begin = begin_query(group.z, j0) * GROUP;
    let end = end_query(group.z, min(j0 + ROWS, params.keys) - 1u) * GROUP;
    let four = lane / 16u;
    let own = lane % 16u;
    let key = vec4(j0 + 4u * four) + vec4(0u, 1u, 2u, 3u);
    var dkey: array<array<array<vec4<f32>, 4>, COLUMNS>, CHUNKS>;
    var dvalue: array<array<array<vec4<f32>, 4>, COLUMNS>, CHUNKS>;
    for (var row = begin; row < end; row += KEYS) {
        var s: array<vec4<f32>, MINE>;
        var dp: array<vec4<f32>, MINE>;
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            workgroupBarrier();
            if CHUNKS > 1u || row == begin {
                for (var e = lane; e < ROWS * CHUNK; e += LANES) {
                    let c = min(chunk * CHUNK + e % CHUNK, C4 - 1u);
                    let at = vector_of_key(group.z, group.y, min(j0 + e / CHUNK, params.keys - 1u)) + c;
                    let to = e / CHUNK * STEP + e % CHUNK;
                    tile_k[to] = Staged(operand4(k[at]));
                    tile_v[to] = Staged(operand4(v[at]));
                }
            }
            stage_queries(group.z, group.y, row, chunk, lane);
            workgroupBarrier();
            for (var c = 0u; c < CHUNK; c++) {
                var x: array<vec4<f32>, 4>;
                var y: array<vec4<f32>, 4>;
                for (var i = 0u; i < 4u; i++) {
                    x[i] = vec4<f32>(tile_k[(4u * four + i) * STEP + c]);
                    y[i] = vec4<f32>(tile_v[(4u * four + i) * STEP + c]);
                }
                for (var n = 0u; n < MINE; n++) {
                    let query = vec4<f32>(tile_q[(16u * n + own) * STEP + c]);
                    s[n] += vec4(dot(x[0], query), dot(x[1], query), dot(x[2], query), dot(x[3], query));
                    let d = vec4<f32>(tile_dy[(16u * n + own) * STEP + c]);
                    dp[n] += vec4(dot(y[0], d), dot(y[1], d), dot(y[2], d), dot(y[3], d));
                }
            }
        }
        for (var n = 0u; n < MINE; n++) {
            let i = row + 16u * n + own;
            let t = min(i / GROUP, params.queries - 1u);
            let head = group.y * GROUP + i % GROUP;
            let last = last_seen(group.z, t);
            let stat = stats[(group.z * params.heads + head) * params.queries + t];
            var score = s[n] * params.scale;
#if ALIBI
            score += slope(head) * (vec4<f32>(key) - f32(last));
#endif
            let seen = (key <= vec4(last)) & (key >= vec4(first_seen(group.z, t, last))) & vec4(i < end);
            let p = select(vec4<f32>(), exp(score - stat.x), seen);
            tile_p[(16u * n + own) * FOURS + four] = Staged(operand4(p));
            tile_s[(16u * n + own) * FOURS + four] = Staged(operand4(p * (dp[n] - stat.y) * params.scale));
        }
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            workgroupBarrier();
            if CHUNKS > 1u {
                stage_queries(group.z, group.y, row, chunk, lane);
                workgroupBarrier();
            }
            for (var i = 0u; i < KEYS; i++) {
                let p = vec4<f32>(tile_p[i * FOURS + four]);
                let ds = vec4<f32>(tile_s[i * FOURS + four]);
                for (var n = 0u; n < COLUMNS; n++) {
                    let at = i * STEP + min(16u * n + own, CHUNK - 1u);
                    let x = vec4<f32>(tile_q[at]);
                    let d = vec4<f32>(tile_dy[at]);
                    for (var r = 0u; r < 4u; r++) {
                        dkey[chunk][n][r] += ds[r] * x;
                        dvalue[chunk][n][r] += p[r] * d;
                    }
                }
            }
        }
    }
    for (var r = 0u; r < 4u; r++) {
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            for (var n = 0u; n < COLUMNS; n++) {
                let c = 16u * n + own;
                if key[r] < params.keys && c < CHUNK && chunk * CHUNK + c < C4 {
                    let at = vector_of_key(group.z, group.y, key[r]) + chunk * CHUNK + c;
                    dk[at] = dkey[chunk][n][r];
                    dv[at] = dvalue[chunk][n][r];
                }
            }
        }
    }
}
