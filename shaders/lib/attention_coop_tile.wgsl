// attention_coop_tile: how rows of attention come into the shared memory of lib/attention_coop.wgsl, where matrices are loaded
// from: KEYS streamed rows at a time, by rows or by columns, and own rows once. A lane loads into registers and stages from
// there, all without a branch, so that loads may be under way during products.

// A lane loads units: one vector of each of HEIGHT streamed rows next to each other. So many are next to each other along the
// head that lanes which store at the same time meet many banks.
const DOWN = KEYS / HEIGHT;
const ALONG = select(2u, 4u, VECTORS % 4u == 0u);
const UNITS = (DOWN * VECTORS + LANES - 1u) / LANES;
const OWN_LOADS = (ROWS * VECTORS + LANES - 1u) / LANES;

// Which rows a workgroup has: those of `row0` and so on, of a kv head's and a sequence's `group`; and the end of those streamed.
struct Place { group: vec3<u32>, row0: u32, end: u32 }
// What a lane has loaded and not yet staged.
alias Ahead = array<array<vec4<f32>, HEIGHT>, UNITS>;

// The vector of the head and the row of the tile where a lane's unit begins. Beyond the last one stands that one again.
fn unit(i: u32, lane: u32) -> vec2<u32> {
    let e = min(lane + i * LANES, DOWN * VECTORS - 1u);
    return vec2(e % ALONG + e / (ALONG * DOWN) * ALONG, e / ALONG % DOWN * HEIGHT);
}

fn load(next: ptr<function, Ahead>, pair: u32, place: Place, row: u32, lane: u32) {
    for (var i = 0u; i < UNITS; i++) {
        let at = unit(i, lane);
        for (var d = 0u; d < HEIGHT; d++) {
            (*next)[i][d] = streamed_vector(pair, streamed_at(place.group, row + at.y + d, place.end) + min(at.x, C4 - 1u));
        }
    }
}

// Beyond the head's width there are zeros.
fn within(v: vec4<f32>, vector: u32) -> vec4<f32> {
    if WIDTH == 4u * C4 {
        return v;
    }
    return select(vec4<f32>(), v, vector < C4);
}

fn put4(to: u32, v: vec4<f16>) {
    for (var e = 0u; e < 4u; e++) {
        tiles[to + e] = v[e];
    }
}

// What was loaded, row by row into the tile at `base`.
fn stage(next: ptr<function, Ahead>, base: u32, lane: u32) {
    for (var i = 0u; i < UNITS; i++) {
        let at = unit(i, lane);
        for (var d = 0u; d < HEIGHT; d++) {
            put4(base + (at.y + d) * STEP + 4u * at.x, half4(within((*next)[i][d], at.x)));
        }
    }
}

// The same by columns, so that what is summed lies next to each other where rows are summed.
fn stage_turned(next: ptr<function, Ahead>, base: u32, lane: u32) {
    for (var i = 0u; i < UNITS; i++) {
        let at = unit(i, lane);
        var v: array<vec4<f16>, HEIGHT>;
        for (var d = 0u; d < HEIGHT; d++) {
            v[d] = half4(within((*next)[i][d], at.x));
        }
        for (var e = 0u; e < 4u; e++) {
            let to = base + (4u * at.x + e) * STEP_S + at.y;
            for (var d = 0u; d < HEIGHT; d++) {
                tiles[to + d] = v[d][e];
            }
        }
    }
}

// Own rows of a pair into the tile at `base`.
fn stage_own(base: u32, pair: u32, place: Place, lane: u32) {
    for (var i = 0u; i < OWN_LOADS; i++) {
        let e = min(lane + i * LANES, ROWS * VECTORS - 1u);
        let v = own_vector(pair, own_at(place.group, place.row0 + e / VECTORS) + min(e % VECTORS, C4 - 1u));
        put4(base + e / VECTORS * STEP + e % VECTORS * 4u, half4(within(v, e % VECTORS)));
    }
}

// The vector of q, dy, o or dq where this row's head begins; beyond the last row, where the last row's does.
fn vector_of_row(group: vec3<u32>, row: u32) -> u32 {
    let r = min(row, params.queries * GROUP - 1u);
    return ((group.z * params.queries + r / GROUP) * params.heads + group.y * GROUP + r % GROUP) * C4;
}

// The number of a row's lse and delta.
fn stat_of_row(group: vec3<u32>, row: u32) -> u32 {
    return (group.z * params.heads + group.y * GROUP + row % GROUP) * params.queries + row / GROUP;
}

// The vector of k, v, dk or dv where this key's head begins.
fn vector_of_key(group: vec3<u32>, key: u32) -> u32 {
    return ((group.z * params.keys + key) * (params.heads / GROUP) + group.y) * C4;
}
