// attention_grad_query_tile: attention_grad_query.wgsl through shared memory, for GPUs: tiles, lanes and constants as in
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

var<workgroup> tile_q: array<Staged, ROWS * STEP>;
var<workgroup> tile_dy: array<Staged, ROWS * STEP>;
var<workgroup> tile_k: array<Staged, KEYS * STEP>;
var<workgroup> tile_v: array<Staged, KEYS * STEP>;
// Gradients of the scores of four rows.
var<workgroup> tile_s: array<Staged, KEYS * FOURS>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let rows = params.queries * GROUP;
    let row0 = group.x * ROWS;
    let begin = begin_key(group.z, row0 / GROUP);
    let end = last_seen(group.z, (min(row0 + ROWS, rows) - 1u) / GROUP) + 1u;
    let four = lane / 16u;
    let own = lane % 16u;
    var last: vec4<u32>;
    var from_key: vec4<u32>;
    var lse: vec4<f32>;
    var delta: vec4<f32>;
    for (var i = 0u; i < 4u; i++) {
        let row = min(row0 + 4u * four + i, rows - 1u);
        last[i] = last_seen(group.z, row / GROUP);
        from_key[i] = first_seen(group.z, row / GROUP, last[i]);
        let head = group.z * params.heads + group.y * GROUP + row % GROUP;
        let stat = stats[head * params.queries + row / GROUP];
        lse[i] = stat.x;
        delta[i] = stat.y;
    }
    var acc: array<array<array<vec4<f32>, 4>, COLUMNS>, CHUNKS>;
    for (var j = begin; j < end; j += KEYS) {
        var s: array<vec4<f32>, MINE>;
        var dp: array<vec4<f32>, MINE>;
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            workgroupBarrier();
            if CHUNKS > 1u || j == begin {
                for (var e = lane; e < ROWS * CHUNK; e += LANES) {
                    let c = chunk * CHUNK + e % CHUNK;
                    let at = vector_of_row(group.z, group.y, row0 + e / CHUNK) + min(c, C4 - 1u);
                    let to = e / CHUNK * STEP + e % CHUNK;
                    tile_q[to] = Staged(select(vec4<f32>(), operand4(q[at]), c < C4));
                    tile_dy[to] = Staged(select(vec4<f32>(), operand4(dy[at]), c < C4));
                }
            }
            for (var e = lane; e < KEYS * CHUNK; e += LANES) {
                let c = min(chunk * CHUNK + e % CHUNK, C4 - 1u);
                let at = vector_of_key(group.z, group.y, min(j + e / CHUNK, end - 1u)) + c;
                let to = e / CHUNK * STEP + e % CHUNK;
                tile_k[to] = Staged(operand4(k[at]));
                tile_v[to] = Staged(operand4(v[at]));
            }
            workgroupBarrier();
            for (var c = 0u; c < CHUNK; c++) {
                var x: array<vec4<f32>, 4>;
                var y: array<vec4<f32>, 4>;
                for (var i = 0u; i < 4u; i++) {
                    x[i] = vec4<f32>(tile_q[(4u * four + i) * STEP + c]);
                    y[i] = vec4<f32>(tile_dy[(4u * four + i) * STEP + c]);
                }
                for (var n = 0u; n < MINE; n++) {
                    let key = vec4<f32>(tile_k[(16u * n + own) * STEP + c]);
                    s[n] += vec4(dot(x[0], key), dot(x[1], key), dot(x[2], key), dot(x[3], key));
                    let value = vec4<f32>(tile_v[(16u * n + own) * STEP + c]);
                    dp[n] += vec4(dot(y[0], value), dot(y[1], value), dot(y[2], value), dot(y[3], value));
                }
            }
        }
        for (var n = 0u; n < MINE; n++) {
            let i = vec4(j + 16u * n + own);
            let score = biased(s[n], group.y, row0 + 4u * four, i.x, last);
            let ds = exp(score - lse) * (dp[n] - delta) * params.scale;
            let seen = select(vec4<f32>(), ds, (i <= last) & (i >= from_key));
            tile_s[(16u * n + own) * FOURS + four] = Staged(operand4(seen));
        }
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            workgroupBarrier();
            if CHUNKS > 1u {
                for (var e = lane; e < KEYS * CHUNK; e += LANES) {
                    let c = min(chunk * CHUNK + e % CHUNK, C4 - 1u);
                    let at = vector_of_key(group.z, group.y, min(j + e / CHUNK, end - 1u)) + c;
                    tile_k[e / CHUNK * STEP + e % CHUNK] = Staged(operand4(k[at]));
                }
                workgroupBarrier();
            }
            for (var i = 0u; i < KEYS; i++) {
                let ds = vec4<f32>(tile_s[i * FOURS + four]);
                for (var n = 0u; n < COLUMNS; n++) {
                    let x = vec4<f32>(tile_k[i * STEP + min(16u * n + own, CHUNK - 1u)]);
                    acc[chunk][n][0] += ds.x * x;
                    acc[chunk][n][1] += ds.y * x;
                    acc[chunk][n][2] += ds.z * x;
                    acc[chunk][n][3] += ds.w * x;
                }
            }
        }
    }
    for (var i = 0u; i < 4u; i++) {
        let row = row0 + 4u * four + i;
        let at = vector_of_row(group.z, group.y, row);
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            for (var n = 0u; n < COLUMNS; n++) {
                let c = 16u * n + own;
                if row < rows && c < CHUNK && chunk * CHUNK + c < C4 {
                    dq[at + chunk * CHUNK + c] = acc[chunk][n][i];
                }
            }
        }
    }
}
