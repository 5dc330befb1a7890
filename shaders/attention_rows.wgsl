// attention_rows: attention.wgsl for adapters whose subgroups have at least 8 lanes and are a CPU's SIMD registers. A
// lane has ROWS queries; of every 8 keys it loads one and hands it to the others, EIGHTS times 8 keys at a time; the
// accumulator stands in o itself: loads, registers and code stay few.
struct Params {
    queries: u32, keys: u32, heads: u32, scale: f32, width: u32, entry: u32,
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
    var largest: array<f32, ROWS>;
    var sum: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        let row = min(row0 + r * WORKGROUP + lane, rows - 1u);
        at[r] = ((group.z * params.queries + row / GROUP) * params.heads + group.y * GROUP + row % GROUP) * width;
        last[r] = last_seen(group.z, row / GROUP);
        from_key[r] = first_seen(group.z, row / GROUP, last[r]);
        largest[r] = MASKED;
#if CARRY
        let head = group.z * params.heads + group.y * GROUP + row % GROUP;
        largest[r] = lse_before[head * params.queries + row / GROUP];
        sum[r] = 1.0;
        for (var c = 0u; c < width; c++) {
            if row0 + r * WORKGROUP + lane < rows { o[at[r] + c] = o_before[at[r] + c]; }
        }
#endif
    }
    for (var j = begin; j < end; j += 8u * EIGHTS) {
        var s: array<array<vec4<f32>, 2 * EIGHTS>, ROWS>;
        var rescale: array<f32, ROWS>;
        var at_key: array<u32, EIGHTS>;
        for (var e = 0u; e < EIGHTS; e++) { at_key[e] = base + min(j + 8u * e + lane, end - 1u) * stride; }
        for (var c = 0u; c < width; c++) {
            var x: array<vec4<f32>, ROWS>;
            for (var r = 0u; r < ROWS; r++) { x[r] = operand4(q[at[r] + c]); }
            for (var e = 0u; e < EIGHTS; e++) {
                let key = eight(operand4(k4(at_key[e] + c)));
                for (var r = 0u; r < ROWS; r++) {
                    let y = x[r];
                    s[r][2u * e] += vec4(dot(y, key[0]), dot(y, key[1]), dot(y, key[2]), dot(y, key[3]));
                    s[r][2u * e + 1u] += vec4(dot(y, key[4]), dot(y, key[5]), dot(y, key[6]), dot(y, key[7]));
                }
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            var m = largest[r];
            for (var n = 0u; n < 2u * EIGHTS; n++) {
                let i = vec4(j + 4u * n) + vec4(0u, 1u, 2u, 3u);
                var scores = s[r][n] * params.scale;
#if ALIBI
                scores += slope(group.y * GROUP + (row0 + r * WORKGROUP + lane) % GROUP) * (vec4<f32>(i) - f32(last[r]));
#endif
                scores = select(vec4(MASKED), scores, (i <= vec4(last[r])) & (i >= vec4(from_key[r])));
                s[r][n] = scores;
                m = max(m, max(max(scores.x, scores.y), max(scores.z, scores.w)));
            }
            rescale[r] = exp(largest[r] - m);
            largest[r] = m;
            sum[r] *= rescale[r];
            for (var n = 0u; n < 2u * EIGHTS; n++) {
                let p = exp(s[r][n] - m);
                s[r][n] = operand4(p);
                sum[r] += (p.x + p.y) + (p.z + p.w);
            }
        }
        for (var c = 0u; c < width; c++) {
            var total: array<vec4<f32>, ROWS>;
            for (var e = 0u; e < EIGHTS; e++) {
                let value = eight(operand4(v4(at_key[e] + c)));
                for (var r = 0u; r < ROWS; r++) {
                    let p = s[r][2u * e];
                    let w = s[r][2u * e + 1u];
                    total[r] += ((p.x * value[0] + p.y * value[1]) + (p.z * value[2] + p.w * value[3]))
                        + ((w.x * value[4] + w.y * value[5]) + (w.z * value[6] + w.w * value[7]));
                }
            }
            for (var r = 0u; r < ROWS; r++) {
                if row0 + r * WORKGROUP + lane < rows {
#if CARRY
                    total[r] += o[at[r] + c] * rescale[r];
#else
                    if j > begin { total[r] += o[at[r] + c] * rescale[r]; }
#endif
                    o[at[r] + c] = total[r];
                }
            }
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        let row = row0 + r * WORKGROUP + lane;
        if row < rows {
            let head = group.z * params.heads + group.y * GROUP + row % GROUP;
            lse[head * params.queries + row / GROUP] = largest[r] + log(sum[r]);
            for (var c = 0u; c < width; c++) { o[at[r] + c] /= sum[r]; }
        }
    }
}
