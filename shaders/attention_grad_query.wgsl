// attention_grad_query: dq of attention; one lane is one query, numbered as in attention.wgsl, keys stream by.
// p = exp(s - lse), ds = p * (dy . v - delta), dq = scale * sum of ds * k.
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

fn key(at: u32) -> vec4<f32> { return operand4(k[at]); }
fn value(at: u32) -> vec4<f32> { return operand4(v[at]); }

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    // Later queries see more keys: the longest work begins first.
    let group = vec3(groups.x - 1u - id.x, id.yz);
    let scale = params.scale;
    let rows = params.queries * GROUP;
    let kv_heads = params.heads / GROUP;
    let row = min(group.x * WORKGROUP + lane, rows - 1u);
    let t = row / GROUP;
    let head = group.y * GROUP + row % GROUP;
    let q_at = ((group.z * params.queries + t) * params.heads + head) * C4;
    let last = last_seen(group.z, t);
    let from_key = first_seen(group.z, t, last);
    let first_row = group.x * WORKGROUP;
    let last_row = min(first_row + WORKGROUP, rows) - 1u;
    let begin = begin_key(group.z, first_row / GROUP);
    let end = last_seen(group.z, last_row / GROUP) + 1u;
    let stride = kv_heads * C4;
    let base = group.z * params.keys * stride + group.y * C4;
    let stat = stats[(group.z * params.heads + head) * params.queries + t];

    var query: array<vec4<f32>, C4>;
    var dout: array<vec4<f32>, C4>;
    var acc: array<vec4<f32>, C4>;
    for (var c = 0u; c < C4; c++) {
        query[c] = operand4(q[q_at + c]);
        dout[c] = operand4(dy[q_at + c]);
    }
    // Two keys at a time: of more, what is the same for all lanes no longer fits scalar registers.
    for (var j = begin; j < end; j += 2u) {
        let k0 = base + j * stride;
        let k1 = base + min(j + 1u, end - 1u) * stride;
        var s = vec2<f32>();
        var dp = vec2<f32>();
        for (var c = 0u; c < C4; c++) {
            s += vec2(dot(query[c], key(k0 + c)), dot(query[c], key(k1 + c)));
            dp += vec2(dot(dout[c], value(k0 + c)), dot(dout[c], value(k1 + c)));
        }
        s *= scale;
        let at = vec2(j, j + 1u);
#if ALIBI
        s += slope(head) * (vec2<f32>(at) - f32(last));
#endif
        let ds = exp(s - stat.x) * (dp - stat.y) * scale;
        let w = operand4(vec4(select(vec2<f32>(), ds, (at <= vec2(last)) & (at >= vec2(from_key))), 0.0, 0.0));
        for (var c = 0u; c < C4; c++) {
            acc[c] += w.x * key(k0 + c) + w.y * key(k1 + c);
        }
    }
    if group.x * WORKGROUP + lane < rows {
        for (var c = 0u; c < C4; c++) {
            dq[q_at + c] = acc[c];
        }
    }
}
