// attention_grad_key_value_rows: attention_grad_key_value.wgsl for adapters whose lanes are those of a CPU: ROWS keys a
// lane, 4 * BLOCKS queries at a time, sums kept in dk and dv themselves.
struct Params { queries: u32, keys: u32, heads: u32, scale: f32, width: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> position: array<u32>;
@group(0) @binding(7) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> dv: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let width = params.width / 4u;
    let first = position[0];
    let kv_heads = params.heads / GROUP;
    let j0 = group.x * WORKGROUP * ROWS;
    let start = max(j0, first) - first;
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
        for (var t = start; t < params.queries; t += 4u * BLOCKS) {
            var s: array<array<vec4<f32>, BLOCKS>, ROWS>;
            var dp: array<array<vec4<f32>, BLOCKS>, ROWS>;
            for (var c = 0u; c < width; c++) {
                var x: array<vec4<f32>, ROWS>;
                var y: array<vec4<f32>, ROWS>;
                for (var r = 0u; r < ROWS; r++) {
                    x[r] = k[at[r] + c];
                    y[r] = v[at[r] + c];
                }
                for (var n = 0u; n < BLOCKS; n++) {
                    let i = t + 4u * n;
                    let a0 = base + min(i, last) * stride + c;
                    let a1 = base + min(i + 1u, last) * stride + c;
                    let a2 = base + min(i + 2u, last) * stride + c;
                    let a3 = base + min(i + 3u, last) * stride + c;
                    let q0 = q[a0];
                    let q1 = q[a1];
                    let q2 = q[a2];
                    let q3 = q[a3];
                    for (var r = 0u; r < ROWS; r++) {
                        s[r][n] += vec4(dot(x[r], q0), dot(x[r], q1), dot(x[r], q2), dot(x[r], q3));
                    }
                    let d0 = dy[a0];
                    let d1 = dy[a1];
                    let d2 = dy[a2];
                    let d3 = dy[a3];
                    for (var r = 0u; r < ROWS; r++) {
                        dp[r][n] += vec4(dot(y[r], d0), dot(y[r], d1), dot(y[r], d2), dot(y[r], d3));
                    }
                }
            }
            for (var n = 0u; n < BLOCKS; n++) {
                let i = vec4(t + 4u * n) + vec4(0u, 1u, 2u, 3u);
                let z0 = stats[row + min(i.x, last)];
                let z1 = stats[row + min(i.y, last)];
                let z2 = stats[row + min(i.z, last)];
                let z3 = stats[row + min(i.w, last)];
                for (var r = 0u; r < ROWS; r++) {
                    let seen = (vec4(key[r]) <= vec4(first) + i) & (i <= vec4(last));
                    let p = select(vec4(0.0), exp(s[r][n] * params.scale - vec4(z0.x, z1.x, z2.x, z3.x)), seen);
                    dp[r][n] = p * (dp[r][n] - vec4(z0.y, z1.y, z2.y, z3.y)) * params.scale;
                    s[r][n] = p;
                }
            }
            for (var c = 0u; c < width; c++) {
                var dkey: array<vec4<f32>, ROWS>;
                var dvalue: array<vec4<f32>, ROWS>;
                for (var n = 0u; n < BLOCKS; n++) {
                    let i = t + 4u * n;
                    let a0 = base + min(i, last) * stride + c;
                    let a1 = base + min(i + 1u, last) * stride + c;
                    let a2 = base + min(i + 2u, last) * stride + c;
                    let a3 = base + min(i + 3u, last) * stride + c;
                    let q0 = q[a0];
                    let q1 = q[a1];
                    let q2 = q[a2];
                    let q3 = q[a3];
                    for (var r = 0u; r < ROWS; r++) {
                        let ds = dp[r][n];
                        dkey[r] += (ds.x * q0 + ds.y * q1) + (ds.z * q2 + ds.w * q3);
                    }
                    let d0 = dy[a0];
                    let d1 = dy[a1];
                    let d2 = dy[a2];
                    let d3 = dy[a3];
                    for (var r = 0u; r < ROWS; r++) {
                        let p = s[r][n];
                        dvalue[r] += (p.x * d0 + p.y * d1) + (p.z * d2 + p.w * d3);
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
