// attention_part: of a query and the heads of one kv head, the softmax's sums over one part of the keys that it sees: o =
// sum of exp(s - m) v, stats = (m, sum of exp(s - m)), m being the part's largest score; zeros where a part is empty.
// A tile is one key a lane for the scores, then one vector of v a lane, as often as WORKGROUP holds a head (C4 = C / 4).
struct Params { queries: u32, keys: u32, heads: u32, scale: f32, entry: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<Cell>;
@group(0) @binding(3) var<storage, read> v: array<Cell>;
@group(0) @binding(4) var<storage, read> position: array<u32>;
@group(0) @binding(5) var<storage, read_write> o: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2<f32>>;

const MASKED = -3.0e38;
const SHARES = WORKGROUP / C4;
#import lib/cache.wgsl
#import lib/query.wgsl
#import lib/part.wgsl

var<workgroup> weights: array<f32, GROUP * WORKGROUP>;
var<workgroup> vectors: array<vec4<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let place = part_of(group.x, group.y, group.z, C4);
    let channel = lane % C4;
    let share = lane / C4;

    var acc: array<vec4<f32>, GROUP>;
    var largest: array<f32, GROUP>;
    var sum: array<f32, GROUP>;
    for (var g = 0u; g < GROUP; g++) {
        largest[g] = MASKED;
    }
    for (var tile = place.begin; tile < place.end; tile += WORKGROUP) {
        let key = min(tile + lane, place.end - 1u);
        var s: array<f32, GROUP>;
        for (var c = 0u; c < C4; c++) {
            let x = k4(place.base + key * place.stride + c);
            for (var g = 0u; g < GROUP; g++) {
                s[g] += dot(q[place.q_at + g * C4 + c], x);
            }
        }
        for (var g = 0u; g < GROUP; g++) {
            s[g] = score(s[g], group.y * GROUP + g, key, place);
            weights[g * WORKGROUP + lane] = s[g];
        }
        workgroupBarrier();
        var rescale: array<f32, GROUP>;
        for (var g = 0u; g < GROUP; g++) {
            var m = largest[g];
            for (var i = 0u; i < WORKGROUP; i++) {
                m = max(m, weights[g * WORKGROUP + i]);
            }
            rescale[g] = exp(largest[g] - m);
            largest[g] = m;
        }
        workgroupBarrier();
        for (var g = 0u; g < GROUP; g++) {
            let p = select(0.0, exp(s[g] - largest[g]), tile + lane < place.end);
            weights[g * WORKGROUP + lane] = p;
            sum[g] = sum[g] * rescale[g] + p;
            acc[g] *= rescale[g];
        }
        workgroupBarrier();
        if share < SHARES {
            for (var i = share; i < min(WORKGROUP, place.end - tile); i += SHARES) {
                let x = v4(place.base + (tile + i) * place.stride + channel);
                for (var g = 0u; g < GROUP; g++) {
                    acc[g] += weights[g * WORKGROUP + i] * x;
                }
            }
        }
        workgroupBarrier();
    }
    for (var g = 0u; g < GROUP; g++) {
        weights[g * WORKGROUP + lane] = sum[g];
        workgroupBarrier(); // the vectors may still be read for the previous head
        vectors[lane] = acc[g];
        workgroupBarrier();
        let row = (place.q_at / C4 + g) * PARTS + group.x;
        if lane < C4 {
            var total = vectors[lane];
            for (var i = 1u; i < SHARES; i++) {
                total += vectors[i * C4 + lane];
            }
            o[row * C4 + lane] = total;
        }
        if lane == 0u {
            var total = 0.0;
            for (var i = 0u; i < WORKGROUP; i++) {
                total += weights[g * WORKGROUP + i];
            }
            stats[row] = vec2(select(0.0, largest[g], place.begin < place.end), total);
        }
    }
}
