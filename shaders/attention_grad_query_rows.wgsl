// attention_grad_query_rows: attention_grad_query.wgsl for adapters whose lanes are those of a CPU: ROWS queries a lane,
// 4 * BLOCKS keys at a time, sums kept in dq itself.
struct Params { queries: u32, keys: u32, heads: u32, scale: f32, width: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> position: array<u32>;
@group(0) @binding(7) var<storage, read_write> dq: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let rows = params.queries * GROUP;
    let width = params.width / 4u;
    let first = position[0];
    let row0 = group.x * WORKGROUP * ROWS;
    let end = min(first + (min(row0 + WORKGROUP * ROWS, rows) - 1u) / GROUP + 1u, params.keys);
    let stride = params.heads / GROUP * width;
    let base = group.z * params.keys * stride + group.y * width;

    var at: array<u32, ROWS>;
    var seen: array<u32, ROWS>;
    var stat: array<vec2<f32>, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        let row = min(row0 + r * WORKGROUP + lane, rows - 1u);
        let head = group.y * GROUP + row % GROUP;
        at[r] = ((group.z * params.queries + row / GROUP) * params.heads + head) * width;
        seen[r] = min(first + row / GROUP + 1u, end);
        stat[r] = stats[(group.z * params.heads + head) * params.queries + row / GROUP];
    }
    for (var j = 0u; j < end; j += 4u * BLOCKS) {
        var s: array<array<vec4<f32>, BLOCKS>, ROWS>;
        var dp: array<array<vec4<f32>, BLOCKS>, ROWS>;
        for (var c = 0u; c < width; c++) {
            var x: array<vec4<f32>, ROWS>;
            var y: array<vec4<f32>, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                x[r] = q[at[r] + c];
                y[r] = dy[at[r] + c];
            }
            for (var n = 0u; n < BLOCKS; n++) {
                let i = j + 4u * n;
                let a0 = base + min(i, end - 1u) * stride + c;
                let a1 = base + min(i + 1u, end - 1u) * stride + c;
                let a2 = base + min(i + 2u, end - 1u) * stride + c;
                let a3 = base + min(i + 3u, end - 1u) * stride + c;
                let k0 = k[a0];
                let k1 = k[a1];
                let k2 = k[a2];
                let k3 = k[a3];
                for (var r = 0u; r < ROWS; r++) {
                    s[r][n] += vec4(dot(x[r], k0), dot(x[r], k1), dot(x[r], k2), dot(x[r], k3));
                }
                let v0 = v[a0];
                let v1 = v[a1];
                let v2 = v[a2];
                let v3 = v[a3];
                for (var r = 0u; r < ROWS; r++) {
                    dp[r][n] += vec4(dot(y[r], v0), dot(y[r], v1), dot(y[r], v2), dot(y[r], v3));
                }
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            for (var n = 0u; n < BLOCKS; n++) {
                let i = j + 4u * n;
                let ds = exp(s[r][n] * params.scale - stat[r].x) * (dp[r][n] - stat[r].y) * params.scale;
                s[r][n] = select(vec4(0.0), ds, vec4(i, i + 1u, i + 2u, i + 3u) < vec4(seen[r]));
            }
        }
        for (var c = 0u; c < width; c++) {
            var total: array<vec4<f32>, ROWS>;
            for (var n = 0u; n < BLOCKS; n++) {
                let i = j + 4u * n;
                let k0 = k[base + min(i, end - 1u) * stride + c];
                let k1 = k[base + min(i + 1u, end - 1u) * stride + c];
                let k2 = k[base + min(i + 2u, end - 1u) * stride + c];
                let k3 = k[base + min(i + 3u, end - 1u) * stride + c];
                for (var r = 0u; r < ROWS; r++) {
                    let ds = s[r][n];
                    total[r] += (ds.x * k0 + ds.y * k1) + (ds.z * k2 + ds.w * k3);
                }
            }
            for (var r = 0u; r < ROWS; r++) {
                if row0 + r * WORKGROUP + lane < rows {
                    if j > 0u { total[r] += dq[at[r] + c]; }
                    dq[at[r] + c] = total[r];
                }
            }
        }
    }
}
