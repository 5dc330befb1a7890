// attention: o = softmax(scale * q k^T) v over the keys that a query sees (lib/query.wgsl); one lane is one query, keys stream by.
// Queries of one kv head are numbered t * GROUP + g, so that the lanes of a workgroup see nearly the same keys and load
// each at one address. C4 = C / 4. The softmax is online: max, sum and accumulator are rescaled as larger scores come. HALF: the
// factors of both products are rounded to f16.
struct Params {
    queries: u32, keys: u32, heads: u32, scale: f32, entry: u32,
#if BLOCK
    piece: u32, query_0: u32, query_1: u32, key_0: u32, key_1: u32,
#endif
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<Cell>;
@group(0) @binding(3) var<storage, read> v: array<Cell>;
@group(0) @binding(4) var<storage, read> position: array<u32>;
@group(0) @binding(5) var<storage, read_write> o: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;
#if CARRY
@group(0) @binding(7) var<storage, read> o_before: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read> lse_before: array<f32>;
#endif

const MASKED = -3.0e38;
#import lib/cache.wgsl
#import lib/operand.wgsl
#import lib/query.wgsl

fn key(at: u32) -> vec4<f32> { return operand4(k4(at)); }
fn value(at: u32) -> vec4<f32> { return operand4(v4(at)); }

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

    var query: array<vec4<f32>, C4>;
    var acc: array<vec4<f32>, C4>;
    for (var c = 0u; c < C4; c++) {
        query[c] = operand4(q[q_at + c]);
    }
    var largest = MASKED;
    var sum = 0.0;
#if CARRY
    largest = lse_before[(group.z * params.heads + head) * params.queries + t];
    sum = 1.0;
    for (var c = 0u; c < C4; c++) {
        acc[c] = o_before[q_at + c];
    }
#endif
    for (var j = begin; j < end; j += 4u) {
        let k0 = base + j * stride;
        let k1 = base + min(j + 1u, end - 1u) * stride;
        let k2 = base + min(j + 2u, end - 1u) * stride;
        let k3 = base + min(j + 3u, end - 1u) * stride;
        var s = vec4<f32>();
        for (var c = 0u; c < C4; c++) {
            let x = query[c];
            s += vec4(dot(x, key(k0 + c)), dot(x, key(k1 + c)), dot(x, key(k2 + c)), dot(x, key(k3 + c)));
        }
        s *= scale;
        let at = vec4(j, j + 1u, j + 2u, j + 3u);
#if ALIBI
        s += slope(head) * (vec4<f32>(at) - f32(last));
#endif
        s = select(vec4(MASKED), s, (at <= vec4(last)) & (at >= vec4(from_key)));
        let m = max(largest, max(max(s.x, s.y), max(s.z, s.w)));
        let rescale = exp(largest - m);
        let p = exp(s - m);
        sum = sum * rescale + (p.x + p.y) + (p.z + p.w);
        largest = m;
        let w = operand4(p);
        for (var c = 0u; c < C4; c++) {
            acc[c] = acc[c] * rescale + (w.x * value(k0 + c) + w.y * value(k1 + c))
                + (w.z * value(k2 + c) + w.w * value(k3 + c));
        }
    }
    if group.x * WORKGROUP + lane < rows {
        for (var c = 0u; c < C4; c++) {
            o[q_at + c] = acc[c] / sum;
        }
        lse[(group.z * params.heads + head) * params.queries + t] = largest + log(sum);
    }
}
