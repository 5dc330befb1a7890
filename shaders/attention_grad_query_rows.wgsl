// attention_grad_query_rows: attention_grad_query.wgsl for adapters whose subgroups have at least 8 lanes and are a
// CPU's SIMD registers: ROWS queries a lane; of every 8 keys it loads one and hands it to the others; sums stand in dq.
struct Params { queries: u32, keys: u32, heads: u32, scale: f32, width: u32, entry: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> position: array<u32>;
@group(0) @binding(7) var<storage, read_write> dq: array<vec4<f32>>;
#import lib/eight.wgsl
#import lib/query.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let rows = params.queries * GROUP;
    let width = params.width / 4u;
    let first = first_position(group.z);
    let row0 = group.x * WORKGROUP * ROWS;
    let begin = first_key(group.z, row0 / GROUP, last_key(first + row0 / GROUP));
    let end = last_key(first + (min(row0 + WORKGROUP * ROWS, rows) - 1u) / GROUP) + 1u;
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
        last[r] = last_key(first + row / GROUP);
        from_key[r] = first_key(group.z, row / GROUP, last[r]);
        stat[r] = stats[(group.z * params.heads + head) * params.queries + row / GROUP];
    }
    for (var j = begin; j < end; j += 8u) {
        var s: array<array<vec4<f32>, 2>, ROWS>;
        var dp: array<array<vec4<f32>, 2>, ROWS>;
        let at_key = base + min(j + lane, end - 1u) * stride;
        for (var c = 0u; c < width; c++) {
            var x: array<vec4<f32>, ROWS>;
            var y: array<vec4<f32>, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                x[r] = q[at[r] + c];
                y[r] = dy[at[r] + c];
            }
            let key = eight(k[at_key + c]);
            for (var r = 0u; r < ROWS; r++) {
                s[r][0] += vec4(dot(x[r], key[0]), dot(x[r], key[1]), dot(x[r], key[2]), dot(x[r], key[3]));
                s[r][1] += vec4(dot(x[r], key[4]), dot(x[r], key[5]), dot(x[r], key[6]), dot(x[r], key[7]));
            }
            let value = eight(v[at_key + c]);
            for (var r = 0u; r < ROWS; r++) {
                dp[r][0] += vec4(dot(y[r], value[0]), dot(y[r], value[1]), dot(y[r], value[2]), dot(y[r], value[3]));
                dp[r][1] += vec4(dot(y[r], value[4]), dot(y[r], value[5]), dot(y[r], value[6]), dot(y[r], value[7]));
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            for (var n = 0u; n < 2u; n++) {
                let i = vec4(j + 4u * n) + vec4(0u, 1u, 2u, 3u);
                var score = s[r][n] * params.scale;
#if ALIBI
                score += slope(group.y * GROUP + (row0 + r * WORKGROUP + lane) % GROUP) * (vec4<f32>(i) - f32(last[r]));
#endif
                let ds = exp(score - stat[r].x) * (dp[r][n] - stat[r].y) * params.scale;
                s[r][n] = select(vec4(0.0), ds, (i <= vec4(last[r])) & (i >= vec4(from_key[r])));
            }
        }
        for (var c = 0u; c < width; c++) {
            var total: array<vec4<f32>, ROWS>;
            let key = eight(k[at_key + c]);
            for (var r = 0u; r < ROWS; r++) {
                let x = s[r][0];
                let y = s[r][1];
                total[r] = ((x.x * key[0] + x.y * key[1]) + (x.z * key[2] + x.w * key[3]))
                    + ((y.x * key[4] + y.y * key[5]) + (y.z * key[6] + y.w * key[7]));
                if row0 + r * WORKGROUP + lane < rows {
                    if j > begin { total[r] += dq[at[r] + c]; }
                    dq[at[r] + c] = total[r];
                }
            }
        }
    }
}
