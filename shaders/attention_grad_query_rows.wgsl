// attention_grad_query_rows: attention_grad_query.wgsl for adapters whose subgroups have at least 8 lanes and are a
// CPU's SIMD registers: ROWS queries a lane; of every 8 keys it loads one and hands it to the others,
// EIGHTS times 8 keys at a time; sums stand in dq.
struct Params {
    queries: u32, keys: u32, heads: u32, scale: f32, width: u32, entry: u32,
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
#import lib/eight.wgsl
#import lib/operand.wgsl
#import lib/query.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let rows = params.queries * GROUP;
    let width = params.width / 4u;
    let row0 = group.x * WORKGROUP * ROWS;
    let begin = begin_key(group.z, row0 / GROUP);
    let end = last_seen(group.z, (min(row0 + WORKGROUP * ROWS, rows) - 1u) / GROUP) + 1u;
    let stride = params.heads / GROUP * width;
    let base = group.z * params.keys * stride + group.y * width;

    var at: array<u32, ROWS>;
    var last: array<u32, ROWS>;
    var from_key: array<u32, ROWS>;
    var stat: array<vec2<f32>, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        let row = min(row0 + r * WORKGROUP + lane, rows - 1u);
        let head = group.y * GROUP + row % GROUP;
        at[r] = ((group.z * params.queries + row / GROUP) * params.heads + head) * width;
        last[r] = last_seen(group.z, row / GROUP);
        from_key[r] = first_seen(group.z, row / GROUP, last[r]);
        stat[r] = stats[(group.z * params.heads + head) * params.queries + row / GROUP];
    }
#if BLOCK
    // It may be that none of them sees a key.
    for (var r = 0u; r < ROWS && begin >= end; r++) {
        for (var c = 0u; c < width; c++) {
            if row0 + r * WORKGROUP + lane < rows { dq[at[r] + c] = vec4(0.0); }
        }
    }
#endif
    for (var j = begin; j < end; j += 8u * EIGHTS) {
        var s: array<array<vec4<f32>, 2 * EIGHTS>, ROWS>;
        var dp: array<array<vec4<f32>, 2 * EIGHTS>, ROWS>;
        var at_key: array<u32, EIGHTS>;
        for (var e = 0u; e < EIGHTS; e++) { at_key[e] = base + min(j + 8u * e + lane, end - 1u) * stride; }
        for (var c = 0u; c < width; c++) {
            var x: array<vec4<f32>, ROWS>;
            var y: array<vec4<f32>, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                x[r] = operand4(q[at[r] + c]);
                y[r] = operand4(dy[at[r] + c]);
            }
            for (var e = 0u; e < EIGHTS; e++) {
                let key = eight(operand4(k[at_key[e] + c]));
                for (var r = 0u; r < ROWS; r++) {
                    let z = x[r];
                    s[r][2u * e] += vec4(dot(z, key[0]), dot(z, key[1]), dot(z, key[2]), dot(z, key[3]));
                    s[r][2u * e + 1u] += vec4(dot(z, key[4]), dot(z, key[5]), dot(z, key[6]), dot(z, key[7]));
                }
            }
            for (var e = 0u; e < EIGHTS; e++) {
                let value = eight(operand4(v[at_key[e] + c]));
                for (var r = 0u; r < ROWS; r++) {
                    let z = y[r];
                    dp[r][2u * e] += vec4(dot(z, value[0]), dot(z, value[1]), dot(z, value[2]), dot(z, value[3]));
                    dp[r][2u * e + 1u] += vec4(dot(z, value[4]), dot(z, value[5]), dot(z, value[6]), dot(z, value[7]));
                }
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            for (var n = 0u; n < 2u * EIGHTS; n++) {
                let i = vec4(j + 4u * n) + vec4(0u, 1u, 2u, 3u);
                var score = s[r][n] * params.scale;
#if ALIBI
                score += slope(group.y * GROUP + (row0 + r * WORKGROUP + lane) % GROUP) * (vec4<f32>(i) - f32(last[r]));
#endif
                let ds = exp(score - stat[r].x) * (dp[r][n] - stat[r].y) * params.scale;
                s[r][n] = select(vec4(0.0), operand4(ds), (i <= vec4(last[r])) & (i >= vec4(from_key[r])));
            }
        }
        for (var c = 0u; c < width; c++) {
            var total: array<vec4<f32>, ROWS>;
            for (var e = 0u; e < EIGHTS; e++) {
                let key = eight(operand4(k[at_key[e] + c]));
                for (var r = 0u; r < ROWS; r++) {
                    let x = s[r][2u * e];
                    let y = s[r][2u * e + 1u];
                    total[r] += ((x.x * key[0] + x.y * key[1]) + (x.z * key[2] + x.w * key[3]))
                        + ((y.x * key[4] + y.y * key[5]) + (y.z * key[6] + y.w * key[7]));
                }
            }
            for (var r = 0u; r < ROWS; r++) {
                if row0 + r * WORKGROUP + lane < rows {
                    if j > begin { total[r] += dq[at[r] + c]; }
                    dq[at[r] + c] = total[r];
                }
            }
        }
    }
}
