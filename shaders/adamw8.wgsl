// adamw8: one step of AdamW on a part of a page, in place, whose moments are codes of eight bits times the largest magnitude
// of each block of 256 elements; one workgroup a block. y: of each block the sum of the squares of what was added to p. With COPY
// `copy` holds params.copies elements of p in f16, the first of which is element params.copied of these.
struct Params {
    start: u32, block: u32, count: u32, run: u32, copied: u32, copies: u32, rate: f32, decay: f32,
    beta1: f32, beta2: f32, epsilon: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> p: array<f32>;
@group(0) @binding(2) var<storage, read_write> moments: array<u32>; // of two elements: m, v, m, v
// Of all blocks that are kept, the part's first being params.block: m's, v's.
@group(0) @binding(3) var<storage, read_write> scales: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read> g: array<f32>;
@group(0) @binding(5) var<storage, read> codes: array<f32>; // 256 for m, 256 for v, ascending
@group(0) @binding(6) var<storage, read> told: array<f32>; // learning rate, 1/(1-beta1^t), 1/(1-beta2^t), factor
#if GAPS
@group(0) @binding(7) var<storage, read> gaps: array<vec2<u32>>;
#import lib/gaps.wgsl
#endif
@group(0) @binding(8) var<storage, read_write> y: array<f32>;
#if COPY
@group(0) @binding(9) var<storage, read_write> copy: array<u32>;
#import lib/halves.wgsl
#endif
const BLOCK = 256u;
const WORDS = BLOCK / 2u / WORKGROUP;
// Of each lane the largest magnitudes, and its part of y.
var<workgroup> of_lanes: array<vec3<f32>, WORKGROUP>;

// The code that is nearest to x, the lower of two.
fn nearest(first: u32, x: f32) -> u32 {
    var low = first;
    var high = first + 255u;
    while low < high {
        let middle = (low + high + 1u) / 2u;
        if 0.5 * (codes[middle - 1u] + codes[middle]) < x {
            low = middle;
        } else {
            high = middle - 1u;
        }
    }
    return low - first;
}

// m and v of element i of the part after this step, from their codes.
fn moved(i: u32, code: vec2<u32>, scale: vec2<f32>, factor: f32) -> vec2<f32> {
    let m = codes[code.x] * scale.x;
    let v = codes[256u + code.y] * scale.y;
    let gradient = g[i] * factor;
    return vec2(m + (gradient - m) * (1.0 - params.beta1), v * params.beta2 + gradient * gradient * (1.0 - params.beta2));
}

fn counts(i: u32) -> bool {
#if GAPS
    return i < params.count && !in_gap(params.start + i);
#else
    return i < params.count;
#endif
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let first = (group.y * groups.x + group.x) * BLOCK;
    let factor = told[3];
    if first >= params.count {
        return;
    }
    if factor == 0.0 {
        if lane == 0u {
            y[params.run + first / BLOCK] = 0.0;
        }
        return;
    }
    let block = params.block + first / BLOCK;
    let scale = scales[block];
    let rate = told[0] * params.rate;
    var kept: array<vec4<f32>, WORDS>;
    var most = vec2<f32>(0.0);
    var sum = 0.0;
    for (var n = 0u; n < WORDS; n++) {
        let i = first + 2u * (n * WORKGROUP + lane);
        var four = vec4<f32>(0.0);
        if i < params.count {
            let word = moments[i / 2u];
            let code = vec4(word & 255u, (word >> 8u) & 255u, (word >> 16u) & 255u, word >> 24u);
            for (var k = 0u; k < 2u; k++) {
                if counts(i + k) {
                    let next = moved(i + k, select(code.xy, code.zw, k == 1u), scale, factor);
                    four = select(vec4(next, four.zw), vec4(four.xy, next), k == 1u);
                    let before = p[i + k];
                    let decayed = before - before * rate * params.decay;
                    let after = decayed - rate * told[1] * next.x / (sqrt(next.y * told[2]) + params.epsilon);
                    p[i + k] = after;
                    sum += (after - before) * (after - before);
                }
            }
#if COPY
            // Of elements before the first it wraps.
            if i - params.copied < params.copies {
                copy[(i - params.copied) / 2u] = halves(vec4(p[i], p[i + 1u], 0.0, 0.0)).x;
            }
#endif
        }
        kept[n] = four;
        most = max(most, max(vec2(abs(four.x), four.y), vec2(abs(four.z), four.w)));
    }
    of_lanes[lane] = vec3(most, sum);
    workgroupBarrier();
    sum = 0.0;
    for (var n = 0u; n < WORKGROUP; n++) {
        most = max(most, of_lanes[n].xy);
        sum += of_lanes[n].z;
    }
    let to = select(vec2<f32>(0.0), 1.0 / most, most > vec2<f32>(0.0));
    for (var n = 0u; n < WORDS; n++) {
        let i = first + 2u * (n * WORKGROUP + lane);
        if i < params.count {
            let four = kept[n] * to.xyxy;
            moments[i / 2u] = nearest(0u, four.x) | (nearest(256u, four.y) << 8u)
                | (nearest(0u, four.z) << 16u) | (nearest(256u, four.w) << 24u);
        }
    }
    if lane == 0u {
        scales[block] = most;
        y[params.run + first / BLOCK] = sum;
    }
}
