// attention_part_eight: attention_part.wgsl for adapters whose subgroups have at least 8 lanes and are a CPU's SIMD
// registers. Of every 8 keys a lane scores one and then has every eighth vector of v: all lanes work for one query.
struct Params { queries: u32, keys: u32, heads: u32, scale: f32, entry: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<Cell>;
@group(0) @binding(3) var<storage, read> v: array<Cell>;
@group(0) @binding(4) var<storage, read> position: array<u32>;
@group(0) @binding(5) var<storage, read_write> o: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2<f32>>;

const MASKED = -3.0e38;
const VECTORS = (C4 + 7u) / 8u;
#import lib/cache.wgsl
#import lib/eight.wgsl
#import lib/part.wgsl
#import lib/query.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let place = part_of(group.x, group.y, group.z, C4);
    var acc: array<array<vec4<f32>, VECTORS>, GROUP>;
    var largest: array<f32, GROUP>;
    var sum: array<f32, GROUP>;
    for (var g = 0u; g < GROUP; g++) {
        largest[g] = MASKED;
    }
    for (var j = place.begin; j < place.end; j += 8u) {
        let key = min(j + lane, place.end - 1u);
        let at_key = place.base + key * place.stride;
        var s: array<f32, GROUP>;
        for (var c = 0u; c < C4; c += 8u) {
            let top = C4 - 1u;
            let x0 = k4(at_key + c);
            let x1 = k4(at_key + min(c + 1u, top));
            let x2 = k4(at_key + min(c + 2u, top));
            let x3 = k4(at_key + min(c + 3u, top));
            let x4 = k4(at_key + min(c + 4u, top));
            let x5 = k4(at_key + min(c + 5u, top));
            let x6 = k4(at_key + min(c + 6u, top));
            let x7 = k4(at_key + min(c + 7u, top));
            for (var g = 0u; g < GROUP; g++) {
                let y = eight(select(vec4(0.0), q[place.q_at + g * C4 + min(c + lane, top)], c + lane < C4));
                s[g] += ((dot(x0, y[0]) + dot(x1, y[1])) + (dot(x2, y[2]) + dot(x3, y[3])))
                    + ((dot(x4, y[4]) + dot(x5, y[5])) + (dot(x6, y[6]) + dot(x7, y[7])));
            }
        }
        for (var g = 0u; g < GROUP; g++) {
            let x = score(s[g], group.y * GROUP + g, key, place);
            let m = max(largest[g], subgroupMax(x));
            let rescale = exp(largest[g] - m);
            largest[g] = m;
            s[g] = select(0.0, exp(x - m), j + lane < place.end);
            sum[g] = sum[g] * rescale + s[g];
            for (var n = 0u; n < VECTORS; n++) {
                acc[g][n] *= rescale;
            }
        }
        for (var n = 0u; n < VECTORS; n++) {
            let at = place.base + min(8u * n + lane, C4 - 1u);
            let end = place.end - 1u;
            let x0 = v4(at + j * place.stride);
            let x1 = v4(at + min(j + 1u, end) * place.stride);
            let x2 = v4(at + min(j + 2u, end) * place.stride);
            let x3 = v4(at + min(j + 3u, end) * place.stride);
            let x4 = v4(at + min(j + 4u, end) * place.stride);
            let x5 = v4(at + min(j + 5u, end) * place.stride);
            let x6 = v4(at + min(j + 6u, end) * place.stride);
            let x7 = v4(at + min(j + 7u, end) * place.stride);
            for (var g = 0u; g < GROUP; g++) {
                let p = s[g];
                acc[g][n] += ((x0 * subgroupBroadcast(p, 0u) + x1 * subgroupBroadcast(p, 1u))
                    + (x2 * subgroupBroadcast(p, 2u) + x3 * subgroupBroadcast(p, 3u)))
                    + ((x4 * subgroupBroadcast(p, 4u) + x5 * subgroupBroadcast(p, 5u))
                    + (x6 * subgroupBroadcast(p, 6u) + x7 * subgroupBroadcast(p, 7u)));
            }
        }
    }
    for (var g = 0u; g < GROUP; g++) {
        let total = eight(vec4(sum[g], 0.0, 0.0, 0.0));
        let row = (place.q_at / C4 + g) * PARTS + group.x;
        for (var n = 0u; n < VECTORS; n++) {
            if 8u * n + lane < C4 {
                o[row * C4 + 8u * n + lane] = acc[g][n];
            }
        }
        if lane == 0u {
            stats[row] = vec2(select(0.0, largest[g], place.begin < place.end),
                ((total[0].x + total[1].x) + (total[2].x + total[3].x))
                + ((total[4].x + total[5].x) + (total[6].x + total[7].x)));
        }
    }
}
