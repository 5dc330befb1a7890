// attention_part: of a query and the heads of one kv head, the softmax's sums over one part of the keys that it sees: o =
// sum of exp(s - m) v, stats = (m, sum of exp(s - m)), m being the part's largest score; zeros where a part is empty.
// A tile is one key a lane for the scores, through shared memory, for lanes beside load what lies beside (CHUNK vectors of C4 =
// C / 4 at a time); then one vector of v a lane, as often as WORKGROUP holds a head. Loads go out many at a time, before
// what is done with those before them, and without a branch.
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
const CHUNK = min(C4, 8u);
const CHUNKS = (C4 + CHUNK - 1u) / CHUNK;
// Values of a lane that are on their way at a time.
const BESIDE = 8u;
#import lib/cache.wgsl
#import lib/query.wgsl
#import lib/part.wgsl

var<workgroup> weights: array<f32, GROUP * WORKGROUP>;
var<workgroup> folded: array<f32, GROUP * 8u>;
// Vectors of keys, each key's one behind where it would be, against bank conflicts; in the end, sums.
var<workgroup> vectors: array<vec4<f32>, WORKGROUP * (CHUNK + 1u)>;

// A chunk of the keys of a tile: in a row, those of lanes that lie beside each other.
fn keys(place: Place, tile: u32, chunk: u32, lane: u32) -> array<vec4<f32>, CHUNK> {
    var x: array<vec4<f32>, CHUNK>;
    for (var i = 0u; i < CHUNK; i++) {
        let e = lane + i * WORKGROUP;
        let key = min(tile + e / CHUNK, place.end - 1u);
        x[i] = k4(place.base + key * place.stride + min(chunk * CHUNK + e % CHUNK, C4 - 1u));
    }
    return x;
}

// A lane's values from its number `from` on, of those of its share of a tile.
fn values(place: Place, tile: u32, from_value: u32, lane: u32) -> array<vec4<f32>, BESIDE> {
    var x: array<vec4<f32>, BESIDE>;
    for (var i = 0u; i < BESIDE; i++) {
        let key = min(tile + lane / C4 + (from_value + i) * SHARES, place.end - 1u);
        x[i] = v4(place.base + key * place.stride + lane % C4);
    }
    return x;
}

// Of each head, the largest or the sum of every eighth of the lanes' weights, all heads at the same time.
fn fold(sum: bool, lane: u32) {
    workgroupBarrier();
    for (var e = lane; e < GROUP * 8u; e += WORKGROUP) {
        let at = e / 8u * WORKGROUP + e % 8u;
        var x = weights[at];
        for (var i = 8u; i < WORKGROUP; i += 8u) {
            x = select(max(x, weights[at + i]), x + weights[at + i], sum);
        }
        folded[e] = x;
    }
    workgroupBarrier();
}

// Of these eight of a head, the largest or the sum.
fn folded_of(g: u32, sum: bool) -> f32 {
    var x = folded[g * 8u];
    for (var i = 1u; i < 8u; i++) {
        x = select(max(x, folded[g * 8u + i]), x + folded[g * 8u + i], sum);
    }
    return x;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let place = part_of(group.x, group.y, group.z, C4);
    let share = lane / C4;

    var acc: array<vec4<f32>, GROUP>;
    var largest: array<f32, GROUP>;
    var sum: array<f32, GROUP>;
    for (var g = 0u; g < GROUP; g++) {
        largest[g] = MASKED;
    }
    for (var tile = place.begin; tile < place.end; tile += WORKGROUP) {
        var next = keys(place, tile, 0u, lane);
        var x = values(place, tile, 0u, lane);
        var s: array<f32, GROUP>;
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            workgroupBarrier();
            for (var i = 0u; i < CHUNK; i++) {
                let e = lane + i * WORKGROUP;
                // Beyond the head's width there are zeros.
                let inside = CHUNKS * CHUNK == C4 || chunk * CHUNK + e % CHUNK < C4;
                vectors[e / CHUNK * (CHUNK + 1u) + e % CHUNK] = select(vec4<f32>(), next[i], inside);
            }
            workgroupBarrier();
            if chunk + 1u < CHUNKS {
                next = keys(place, tile, chunk + 1u, lane);
            }
            for (var c = 0u; c < CHUNK; c++) {
                let vector = vectors[lane * (CHUNK + 1u) + c];
                for (var g = 0u; g < GROUP; g++) {
                    s[g] += dot(q[place.q_at + g * C4 + min(chunk * CHUNK + c, C4 - 1u)], vector);
                }
            }
        }
        for (var g = 0u; g < GROUP; g++) {
            s[g] = score(s[g], group.y * GROUP + g, min(tile + lane, place.end - 1u), place);
            weights[g * WORKGROUP + lane] = s[g];
        }
        fold(false, lane);
        var rescale: array<f32, GROUP>;
        for (var g = 0u; g < GROUP; g++) {
            let m = max(largest[g], folded_of(g, false));
            rescale[g] = exp(largest[g] - m);
            largest[g] = m;
        }
        for (var g = 0u; g < GROUP; g++) {
            let p = select(0.0, exp(s[g] - largest[g]), tile + lane < place.end);
            weights[g * WORKGROUP + lane] = p;
            sum[g] = sum[g] * rescale[g] + p;
            acc[g] *= rescale[g];
        }
        workgroupBarrier();
        for (var from_value = 0u; from_value * SHARES < WORKGROUP; from_value += BESIDE) {
            if from_value > 0u {
                x = values(place, tile, from_value, lane);
            }
            for (var i = 0u; i < BESIDE; i++) {
                let key = share + (from_value + i) * SHARES;
                for (var g = 0u; g < GROUP; g++) {
                    acc[g] += select(0.0, weights[g * WORKGROUP + min(key, WORKGROUP - 1u)], key < WORKGROUP) * x[i];
                }
            }
        }
        workgroupBarrier();
    }
    for (var g = 0u; g < GROUP; g++) {
        weights[g * WORKGROUP + lane] = sum[g];
    }
    fold(true, lane);
    for (var g = 0u; g < GROUP; g++) {
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
            stats[row] = vec2(select(0.0, largest[g], place.begin < place.end), folded_of(g, true));
        }
    }
}
