// attention_grad_key_value: dk and dv of attention; one lane is one key, the queries of its heads that see it stream by.
// p = exp(s - lse), dv = sum of p * dy, ds = p * (dy . v - delta), dk = scale * sum of ds * q.
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

fn query(at: u32) -> vec4<f32> { return operand4(q[at]); }
fn dout(at: u32) -> vec4<f32> { return operand4(dy[at]); }

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let kv_heads = params.heads / GROUP;
    let j0 = group.x * WORKGROUP;
    let j = min(j0 + lane, params.keys - 1u);
    let k_at = ((group.z * params.keys + j) * kv_heads + group.y) * C4;
    let start = begin_query(group.z, j0);
    let end = end_query(group.z, min(j0 + WORKGROUP, params.keys) - 1u);
    let stride = params.heads * C4;
    let scale = params.scale;

    var key: array<vec4<f32>, C4>;
    var value: array<vec4<f32>, C4>;
    var dkey: array<vec4<f32>, C4>;
    var dvalue: array<vec4<f32>, C4>;
    for (var c = 0u; c < C4; c++) {
        key[c] = operand4(k[k_at + c]);
        value[c] = operand4(v[k_at + c]);
    }
    for (var g = 0u; g < GROUP; g++) {
        let head = group.y * GROUP + g;
        let base = group.z * params.queries * stride + head * C4;
        let row = (group.z * params.heads + head) * params.queries;
        for (var t = start; t < end; t++) {
            let q_at = base + t * stride;
            var s = 0.0;
            var dp = 0.0;
            for (var c = 0u; c < C4; c++) {
                s += dot(key[c], query(q_at + c));
                dp += dot(value[c], dout(q_at + c));
            }
            let stat = stats[row + t];
            let last = last_seen(group.z, t);
            s *= scale;
#if ALIBI
            s += slope(head) * (f32(j) - f32(last));
#endif
            let seen = j <= last && j >= first_seen(group.z, t, last);
            let p = select(0.0, exp(s - stat.x), seen);
            // The probability, and the gradient of the score, as they are multiplied.
            let w = operand4(vec4(p, p * (dp - stat.y) * scale, 0.0, 0.0));
            for (var c = 0u; c < C4; c++) {
                dvalue[c] += w.x * dout(q_at + c);
                dkey[c] += w.y * query(q_at + c);
            }
        }
    }
    if j0 + lane < params.keys {
        for (var c = 0u; c < C4; c++) {
            dk[k_at + c] = dkey[c];
            dv[k_at + c] = dvalue[c];
        }
    }
}
