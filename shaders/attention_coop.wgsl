// attention_coop: attention.wgsl by cooperative matrices (lib/attention_coop.wgsl), tier 4. A workgroup makes ROWS queries,
// numbered as there, over tiles of KEYS keys. The softmax is online, but what a row's exponents are taken against is raised
// only where a score is more than ROOM above it: sums stay in matrices, where a row cannot be scaled.
enable f16;
enable wgpu_cooperative_matrix;
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
@group(0) @binding(5) var<storage, read_write> o: array<f32>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;
#if CARRY
@group(0) @binding(7) var<storage, read> o_before: array<f32>;
@group(0) @binding(8) var<storage, read> lse_before: array<f32>;
#endif
#import lib/cache.wgsl
#import lib/operand.wgsl
#import lib/query.wgsl
#import lib/attention_coop.wgsl

const OWNS = 1u;
fn own_at(group: vec3<u32>, row: u32) -> u32 { return vector_of_row(group, row); }
fn own_vector(pair: u32, at: u32) -> vec4<f32> { return q[at]; }
fn streamed_at(group: vec3<u32>, row: u32, end: u32) -> u32 { return vector_of_key(group, min(row, end - 1u)); }
const K = 0u;
const V = 1u;
fn streamed_vector(pair: u32, at: u32) -> vec4<f32> {
    if pair == K {
        return k4(at);
    }
    return v4(at);
}

const TILE_K = 0u;
const TILE_V = KEYS * STEP;
const TILE_P = TILE_V + WIDTH * STEP_S;
const TILES = TILE_P + ROWS * STEP_S;
// What a probability of one is staged as, a power of two, and by how many powers it may become larger: none becomes as large as
// f16 ends, and those of 2^-26 of the largest are normal numbers yet.
const POWER = 12.0;
const UNIT = 4096.0;
const ROOM = 3.0;
// The end of the last tile for which a row was raised.
var<workgroup> raised: u32;
// What the lanes of a row tell each other.
var<workgroup> told: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    // Later queries see more keys: the longest work begins first.
    let group = vec3(groups.x - 1u - id.x, id.yz);
    let rows = params.queries * GROUP;
    let row0 = group.x * ROWS;
    let end_row = min(row0 + ROWS, rows);
    let begin = begin_key(group.z, row0 / GROUP);
    let end = last_seen(group.z, (end_row - 1u) / GROUP) + 1u;
    // Between these all rows see all keys.
    let all_from = first_seen(group.z, (end_row - 1u) / GROUP, end - 1u);
    let all_end = last_seen(group.z, row0 / GROUP) + 1u;
    let subgroup = lane / SUBGROUP;
    let r = lane / ACROSS;
    let part = lane % ACROSS;
    let row = row0 + r;
    let t = min(row, rows - 1u) / GROUP;
    let last = last_seen(group.z, t);
    let from_key = first_seen(group.z, t, last);
    let scale = params.scale;
    let powers = scale * LOG2_E;
#if ALIBI
    let bias = slope(group.y * GROUP + min(row, rows - 1u) % GROUP) / scale;
#endif
    let place = Place(group, row0, end);
    var own: Own;
    begin_own(&own, OWN_0, 0u, place, subgroup, lane);
    // What exponents are taken against, unscaled; and sums, of this lane and of the row's vectors.
    var largest = MASKED;
    var sum = 0.0;
    var sums: Sums;
    var is_summed = false;
#if CARRY
    is_summed = true;
    largest = lse_before[stat_of_row(group, min(row, rows - 1u))] / scale;
    sum = select(0.0, UNIT, part == 0u);
    for (var c = 0u; c < DEEP; c++) {
        workgroupBarrier();
        for (var e = HIGH; e < DEEP * HIGH; e++) {
            sums[e - HIGH] = sums[e];
        }
        for (var n = 0u; n < COLUMNS; n++) {
            let column = part * COLUMNS + n;
            let at = 4u * vector_of_row(group, row) + min(c * SIZE + column, 4u * C4 - 1u);
            product[r * STEP_P + column] = o_before[at] * UNIT;
        }
        workgroupBarrier();
        take(&sums, subgroup);
    }
#endif
    var next_k: Ahead;
    var next_v: Ahead;
    load(&next_k, K, place, begin, lane);
    stage(&next_k, TILE_K, lane);
    if lane == 0u {
        raised = 0u;
    }
    for (var j = begin; j < end; j += KEYS) {
        workgroupBarrier();
        load(&next_v, V, place, j, lane);
        if HELD < 1u {
            scores(OWN_0, TILE_K, subgroup);
        } else {
            scores_of_held(&own, TILE_K, subgroup);
        }
        // Before anything branches: a compiler moves loads to where they are used.
        stage_turned(&next_v, TILE_V, lane);
        workgroupBarrier();
        // Each of a row's lanes looks through all of its scores, its own first: that takes no barrier.
        var s: array<vec4<f32>, KEYS / 4u>;
        for (var n = 0u; n < KEYS / 4u; n++) {
            s[n] = score4(r, place_of_score(n, part));
        }
        if j < all_from || j + KEYS > all_end {
            for (var n = 0u; n < KEYS / 4u; n++) {
                let key = vec4(j + place_of_score(n, part)) + vec4(0u, 1u, 2u, 3u);
                s[n] = select(vec4(MASKED), s[n], (key <= vec4(last)) & (key >= vec4(from_key)));
            }
        }
        var m = vec4(MASKED);
        for (var n = 0u; n < KEYS / 4u; n++) {
#if ALIBI
            let key = vec4(j + place_of_score(n, part)) + vec4(0u, 1u, 2u, 3u);
            s[n] += bias * (vec4<f32>(key) - f32(last));
#endif
            m = max(m, s[n]);
        }
        let top = max(max(m.x, m.y), max(m.z, m.w));
        var factor = 1.0;
        if (top - largest) * powers > ROOM {
            factor = exp2((largest - top) * powers);
            largest = top;
            sum *= factor;
            if is_summed {
                raised = j + KEYS;
            }
        }
        // Of a row that has seen nothing yet no key counts.
        let base = POWER - max(largest, MASKED / 2.0) * powers;
        for (var n = 0u; n < MINE; n++) {
            let p = exp2(s[n] * powers + base);
            sum += p.x + p.y + p.z + p.w;
            put4(TILE_P + r * STEP_S + place_of_score(n, part), half4_of_probabilities(p));
        }
        if workgroupUniformLoad(&raised) == j + KEYS {
            for (var c = 0u; c < DEEP; c++) {
                show(&sums, subgroup);
                workgroupBarrier();
                for (var n = 0u; n < COLUMNS; n++) {
                    product[r * STEP_P + part * COLUMNS + n] *= factor;
                }
                workgroupBarrier();
                take(&sums, subgroup);
                workgroupBarrier();
            }
        }
        load(&next_k, K, place, j + KEYS, lane);
        weighted(&sums, TILE_P, TILE_V, subgroup);
        stage(&next_k, TILE_K, lane);
        is_summed = true;
    }
    told[lane] = sum;
    workgroupBarrier();
    sum = 0.0;
    for (var i = 0u; i < ACROSS; i++) {
        sum += told[r * ACROSS + i];
    }
    let at = 4u * vector_of_row(group, row);
    for (var c = 0u; c < DEEP; c++) {
        workgroupBarrier();
        show(&sums, subgroup);
        workgroupBarrier();
        for (var n = 0u; n < COLUMNS; n++) {
            let column = part * COLUMNS + n;
            if row < rows && c * SIZE + column < 4u * C4 {
                o[at + c * SIZE + column] = product[r * STEP_P + column] / sum;
            }
        }
    }
    if row < rows && part == 0u {
        lse[stat_of_row(group, row)] = largest * scale + log(sum / UNIT);
    }
}
