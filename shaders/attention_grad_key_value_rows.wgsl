// attention_grad_key_value_rows: attention_grad_key_value.wgsl for adapters whose subgroups have at least 8 lanes and
// are a CPU's SIMD registers: ROWS keys a lane; of every 8 queries it loads one and hands it to the others, EIGHTS times
// 8 queries at a time; sums stand in dk and dv.
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
@group(0) @binding(7) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> dv: array<vec4<f32>>;
#import lib/eight.wgsl
#import lib/operand.wgsl
#import lib/query.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let width = params.width / 4u;
    let kv_heads = params.heads / GROUP;
    let j0 = group.x * WORKGROUP * ROWS;
    let start = begin_query(group.z, j0);
    let end = end_query(group.z, min(j0 + WORKGROUP * ROWS, params.keys) - 1u);
    let last = params.queries - 1u;
    let stride = params.heads * width;

    var at: array<u32, ROWS>;
    var key: array<u32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        key[r] = j0 + r * WORKGROUP + lane;
        at[r] = ((group.z * params.keys + min(key[r], params.keys - 1u)) * kv_heads + group.y) * width;
        for (var c = 0u; c < width; c++) {
            if key[r] < params.keys {
                dk[at[r] + c] = vec4(0.0);
                dv[at[r] + c] = vec4(0.0);
            }
        }
    }
    for (var g = 0u; g < GROUP; g++) {
        let head = group.y * GROUP + g;
        let base = group.z * params.queries * stride + head * width;
        let row = (group.z * params.heads + head) * params.queries;
        for (var t = start; t < end; t += 8u * EIGHTS) {
            var s: array<array<vec4<f32>, 2 * EIGHTS>, ROWS>;
            var dp: array<array<vec4<f32>, 2 * EIGHTS>, ROWS>;
            var at_query: array<u32, EIGHTS>;
            for (var e = 0u; e < EIGHTS; e++) { at_query[e] = base + min(t + 8u * e + lane, last) * stride; }
            for (var c = 0u; c < width; c++) {
                var x: array<vec4<f32>, ROWS>;
                var y: array<vec4<f32>, ROWS>;
                for (var r = 0u; r < ROWS; r++) {
                    x[r] = operand4(k[at[r] + c]);
                    y[r] = operand4(v[at[r] + c]);
                }
                for (var e = 0u; e < EIGHTS; e++) {
                    let query = eight(operand4(q[at_query[e] + c]));
                    for (var r = 0u; r < ROWS; r++) {
                        let z = x[r];
                        s[r][2u * e] += vec4(dot(z, query[0]), dot(z, query[1]), dot(z, query[2]), dot(z, query[3]));
                        s[r][2u * e + 1u] += vec4(dot(z, query[4]), dot(z, query[5]), dot(z, query[6]), dot(z, query[7]));
                    }
                }
                for (var e = 0u; e < EIGHTS; e++) {
                    let d = eight(operand4(dy[at_query[e] + c]));
                    for (var r = 0u; r < ROWS; r++) {
                        let z = y[r];
                        dp[r][2u * e] += vec4(dot(z, d[0]), dot(z, d[1]), dot(z, d[2]), dot(z, d[3]));
                        dp[r][2u * e + 1u] += vec4(dot(z, d[4]), dot(z, d[5]), dot(z, d[6]), dot(z, d[7]));
                    }
                }
            }
            for (var n = 0u; n < 2u * EIGHTS; n++) {
                // With a query's statistics go the first and the last key that it sees: below 2^24, so that floats hold them.
                let own = min(t + n / 2u * 8u + lane, last);
                let seen_last = last_seen(group.z, own);
                let z = eight(vec4(stats[row + own], f32(first_seen(group.z, own, seen_last)), f32(seen_last)));
                let i = vec4(t + 4u * n) + vec4(0u, 1u, 2u, 3u);
                let z0 = z[4u * (n % 2u)];
                let z1 = z[4u * (n % 2u) + 1u];
                let z2 = z[4u * (n % 2u) + 2u];
                let z3 = z[4u * (n % 2u) + 3u];
                for (var r = 0u; r < ROWS; r++) {
                    let at = vec4(f32(key[r]));
                    let until = vec4(z0.w, z1.w, z2.w, z3.w);
                    var score = s[r][n] * params.scale;
#if ALIBI
                    score += slope(head) * (at - until);
#endif
                    let seen = (at <= until) & (at >= vec4(z0.z, z1.z, z2.z, z3.z)) & (i < vec4(end));
                    let p = select(vec4(0.0), exp(score - vec4(z0.x, z1.x, z2.x, z3.x)), seen);
                    dp[r][n] = operand4(p * (dp[r][n] - vec4(z0.y, z1.y, z2.y, z3.y)) * params.scale);
                    s[r][n] = operand4(p);
                }
            }
            for (var c = 0u; c < width; c++) {
                var dkey: array<vec4<f32>, ROWS>;
                var dvalue: array<vec4<f32>, ROWS>;
                for (var e = 0u; e < EIGHTS; e++) {
                    let query = eight(operand4(q[at_query[e] + c]));
                    for (var r = 0u; r < ROWS; r++) {
                        let x = dp[r][2u * e];
                        let y = dp[r][2u * e + 1u];
                        dkey[r] += ((x.x * query[0] + x.y * query[1]) + (x.z * query[2] + x.w * query[3]))
                            + ((y.x * query[4] + y.y * query[5]) + (y.z * query[6] + y.w * query[7]));
                    }
                    let d = eight(operand4(dy[at_query[e] + c]));
                    for (var r = 0u; r < ROWS; r++) {
                        let p = s[r][2u * e];
                        let w = s[r][2u * e + 1u];
                        dvalue[r] += ((p.x * d[0] + p.y * d[1]) + (p.z * d[2] + p.w * d[3]))
                            + ((w.x * d[4] + w.y * d[5]) + (w.z * d[6] + w.w * d[7]));
                    }
                }
                for (var r = 0u; r < ROWS; r++) {
                    if key[r] < params.keys {
                        dk[at[r] + c] += dkey[r];
                        dv[at[r] + c] += dvalue[r];
                    }
                }
            }
        }
    }
}
