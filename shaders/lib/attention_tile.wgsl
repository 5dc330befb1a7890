// attention_tile: what the tiles of attention share. A workgroup has ROWS rows of its own and streams KEYS others at a time;
// sixteen lanes share HIGH fours of rows, and each has every 16th of the others. Two products make all of attention: scores,
// own rows times streamed ones, by chunks of CHUNK vectors of the head (`products`), and sums of streamed rows, weighted by what
// was made of the scores, by slabs of SLAB rows (`weighted`). What is staged next is loaded into registers, without a branch,
// before the products of what is staged now, and so is on its way meanwhile. WHOLE: own rows are staged once, whole.
// The kernel says of what pairs scores are made, OWNS in number: `own_vector(pair, at)` and `streamed_vector(pair, at)`, and
// where rows begin: `own_at(group, row)`, `streamed_at(group, row, end)`.
#if STAGED
enable f16;
alias Staged = vec4<f16>;
#else
alias Staged = vec4<f32>;
#endif

#import lib/attention_products.wgsl

const MASKED = -3.0e38;
const FOURS = ROWS / 4u;
const LANES = 4u * ROWS / HIGH;
const CHUNKS = (C4 + CHUNK - 1u) / CHUNK;
const SLABS = KEYS / SLAB;
// Scores of a row, and vectors of a head, that one of sixteen lanes has.
const MINE = KEYS / 16u;
const COLUMNS = (C4 + 15u) / 16u;
// Vectors of an own row that are staged, and of all own rows.
#if WHOLE
const OWN = CHUNKS * CHUNK;
const OWN_TILE = ROWS * OWN_STEP * OWNS;
#else
const OWN = CHUNK;
const OWN_TILE = ROWS * OWN_STEP;
#endif
// Vectors from a staged row to the next, and from the weights of one streamed row to the next's: one more than there are,
// against bank conflicts.
const OWN_STEP = OWN + 1u;
const STEP = CHUNK + 1u;
const WEIGHTS = FOURS + 1u;
// Vectors that a lane loads.
const OWN_LOADS = (ROWS * OWN + LANES - 1u) / LANES;
const LOADS = (KEYS * CHUNK + LANES - 1u) / LANES;
const SLAB_LOADS = (SLAB * C4 + LANES - 1u) / LANES;
// Rows of a slab whose loads from shared memory are on their way at a time.
const BESIDE = min(SLAB, 4u);
// What a probability of one is staged as: so that those of 2^-28 of the largest are normal numbers yet where they are f16.
#if HALF
const UNIT = 16384.0;
#else
const UNIT = 1.0;
#endif

// What is loaded next: the first chunk of a pair, or the first slab of its streamed rows.
const CHUNK_OF = 0u;
const SLAB_OF = 2u;

// Which rows a workgroup has: those of `row0` and so on, of a kv head's and a sequence's `group`; and the end of those streamed.
struct Place { group: vec3<u32>, row0: u32, end: u32 }
// What a lane has loaded and not yet staged: of streamed rows a chunk's or a slab's, which are never both on their way, and would
// hold registers all the way round the loops if they had places of their own.
struct Ahead { own: array<vec4<f32>, OWN_LOADS>, streamed: array<vec4<f32>, max(LOADS, SLAB_LOADS)> }
// Of a lane: scores by streamed row and own four, sums by own four and vector of the head.
alias Scores = array<array<vec4<f32>, HIGH>, MINE>;
alias Sums = array<array<array<vec4<f32>, 4>, COLUMNS>, HIGH>;

var<workgroup> tile_own: array<Staged, OWN_TILE>;
// A chunk of KEYS streamed rows, or a slab of whole ones.
var<workgroup> tile: array<Staged, max(KEYS * STEP, SLAB * C4)>;
// The weights of sixteen streamed rows.
var<workgroup> weights: array<Staged, 16u * WEIGHTS>;

// Row and column of the i-th of a lane's vectors in a block of `rows` by `columns`; beyond its end, some vector of it. Where LANES is
// a multiple of `columns`, a lane's column is the same in all, and one register.
fn part(i: u32, rows: u32, columns: u32, lane: u32) -> vec2<u32> {
    if LANES % columns == 0u {
        return vec2(min(lane / columns + i * (LANES / columns), rows - 1u), lane % columns);
    }
    let e = min(lane + i * LANES, rows * columns - 1u);
    return vec2(e / columns, e % columns);
}

fn load_own(next: ptr<function, Ahead>, pair: u32, place: Place, chunk: u32, lane: u32) {
    for (var i = 0u; i < OWN_LOADS; i++) {
        let e = part(i, ROWS, OWN, lane);
        let at = own_at(place.group, place.row0 + e.x) + min(chunk * CHUNK + e.y, C4 - 1u);
        (*next).own[i] = own_vector(pair, at);
    }
}

// Beyond the head's width there are zeros.
fn stage_own(next: ptr<function, Ahead>, pair: u32, chunk: u32, lane: u32) {
    for (var i = 0u; i < OWN_LOADS; i++) {
        if (i + 1u) * LANES <= ROWS * OWN || lane + i * LANES < ROWS * OWN {
            let e = part(i, ROWS, OWN, lane);
            let inside = CHUNKS * CHUNK == C4 || chunk * CHUNK + e.y < C4;
            let x = select(vec4<f32>(), operand4((*next).own[i]), inside);
            tile_own[own_tile(pair) + e.x * OWN_STEP + e.y] = Staged(x);
        }
    }
}

fn load_chunk(next: ptr<function, Ahead>, pair: u32, place: Place, row: u32, chunk: u32, lane: u32) {
#if WHOLE
#else
    load_own(next, pair, place, chunk, lane);
#endif
    for (var i = 0u; i < LOADS; i++) {
        let e = part(i, KEYS, CHUNK, lane);
        let at = streamed_at(place.group, row + e.x, place.end) + min(chunk * CHUNK + e.y, C4 - 1u);
        (*next).streamed[i] = streamed_vector(pair, at);
    }
}

fn load_slab(next: ptr<function, Ahead>, pair: u32, place: Place, row: u32, lane: u32) {
    for (var i = 0u; i < SLAB_LOADS; i++) {
        let e = part(i, SLAB, C4, lane);
        (*next).streamed[i] = streamed_vector(pair, streamed_at(place.group, row + e.x, place.end) + e.y);
    }
}

fn load_first(next: ptr<function, Ahead>, then: u32, place: Place, row: u32, lane: u32) {
    if then < SLAB_OF {
        load_chunk(next, then - CHUNK_OF, place, row, 0u, lane);
    } else {
        load_slab(next, then - SLAB_OF, place, row, lane);
    }
}

// Where the own rows of a pair are staged.
fn own_tile(pair: u32) -> u32 {
#if WHOLE
    return pair * ROWS * OWN_STEP;
#else
    return 0u;
#endif
}

// Stages all own rows where they are staged whole, and loads the first chunk of pair 0.
fn begin_tiles(next: ptr<function, Ahead>, place: Place, row: u32, lane: u32) {
#if WHOLE
    for (var pair = 0u; pair < OWNS; pair++) {
        load_own(next, pair, place, 0u, lane);
        stage_own(next, pair, 0u, lane);
    }
#endif
    load_first(next, CHUNK_OF, place, row, lane);
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

// The scores of four rows from `row` on and a key: scaled, and lowered by distance.
fn biased(product: vec4<f32>, kv_head: u32, row: u32, key: u32, last: vec4<u32>) -> vec4<f32> {
#if ALIBI
    let head = vec4(kv_head * GROUP) + (vec4(row) + vec4(0u, 1u, 2u, 3u)) % vec4(GROUP);
    let slopes = vec4(slope(head.x), slope(head.y), slope(head.z), slope(head.w));
    return product * params.scale + slopes * (vec4(f32(key)) - vec4<f32>(last));
#else
    return product * params.scale;
#endif
}
