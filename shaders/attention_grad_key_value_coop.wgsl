// attention_grad_key_value_coop: attention_grad_key_value.wgsl by cooperative matrices (lib/attention_coop.wgsl), tier 4. A
// workgroup makes ROWS keys, and KEYS is how many queries it streams at a time, those of all heads of the group in one row.
// dv = sum of p * dy, ds = p * (dy . v - delta), dk = scale * sum of ds * q. PARTS: so many workgroups share a tile's queries,
// each with a dk and dv of its own.
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
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> position: array<u32>;
@group(0) @binding(7) var<storage, read_write> dk: array<f32>;
@group(0) @binding(8) var<storage, read_write> dv: array<f32>;
#import lib/operand.wgsl
#import lib/query.wgsl
#import lib/attention_coop.wgsl

const OWNS = 2u;
// The pairs: k and q, v and dy.
const KQ = 0u;
const VDY = 1u;
fn own_at(group: vec3<u32>, row: u32) -> u32 { return vector_of_key(group, min(row, params.keys - 1u)); }
fn own_vector(pair: u32, at: u32) -> vec4<f32> {
    if pair == KQ {
        return k[at];
    }
    return v[at];
}
// Queries of another document may hold no numbers, which no weight of zero undoes.
fn streamed_at(group: vec3<u32>, row: u32, end: u32) -> u32 { return vector_of_row(group, min(row, max(end, 1u) - 1u)); }
fn streamed_vector(pair: u32, at: u32) -> vec4<f32> {
    if pair == KQ {
        return q[at];
    }
    return dy[at];
}

const TURNED_Q = 0u;
const TURNED_DY = WIDTH * STEP_S;
const TILE_DY = 2u * WIDTH * STEP_S;
const TILE_Q = TILE_DY + KEYS * STEP;
// Once there are scores queries are no longer needed as they are.
const TILE_S = TILE_Q;
const TILES = TILE_Q + max(KEYS * STEP, ROWS * STEP_S);

#import lib/queries.wgsl

// Queries and their gradients as they are and by columns, and what is known of them.
fn stage_tile(q: ptr<function, Ahead>, dy: ptr<function, Ahead>, known: ptr<function, Queries>, lane: u32) {
    stage(q, TILE_Q, lane);
    stage_turned(q, TURNED_Q, lane);
    stage(dy, TILE_DY, lane);
    stage_turned(dy, TURNED_DY, lane);
    stage_queries(known, lane);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
#if PARTS
    let group = vec3(id.x / PARTS, id.yz);
    // Where the part's dk and dv are.
    let of_part = vector_of_key(vec3(0u, 0u, groups.z * (id.x % PARTS)), 0u);
#else
    let group = id;
    let of_part = 0u;
#endif
    let j0 = group.x * ROWS;
    let end_key = min(j0 + ROWS, params.keys);
    var begin = begin_query(group.z, j0) * GROUP;
    var end = end_query(group.z, end_key - 1u) * GROUP;
#if PARTS
    let each = ((max(end, begin) - begin + PARTS - 1u) / PARTS + KEYS - 1u) / KEYS * KEYS;
    begin += id.x % PARTS * each;
    end = min(begin + each, end);
#endif
    let subgroup = lane / SUBGROUP;
    let r = row_of(lane);
    let part = lane % ACROSS;
    let key = j0 + r;
    let scale = params.scale;
    let powers = scale * LOG2_E;
    let place = Place(group, j0, end);
    var own_k: Own;
    var own_v: Own;
    begin_own(&own_k, OWN_0, KQ, place, subgroup, lane);
    begin_own(&own_v, OWN_1, VDY, place, subgroup, lane);
    var dkey: Sums;
    var dvalue: Sums;
    var next_q: Ahead;
    var next_dy: Ahead;
    var next: Queries;
    load(&next_q, KQ, place, begin, lane);
    load(&next_dy, VDY, place, begin, lane);
    load_queries(&next, place, begin, lane);
    stage_tile(&next_q, &next_dy, &next, lane);
    for (var row = begin; row < end; row += KEYS) {
        workgroupBarrier();
        if HELD < 2u {
            scores(OWN_0, TILE_Q, subgroup);
        } else {
            scores_of_held(&own_k, TILE_Q, subgroup);
        }
        workgroupBarrier();
        var p: array<vec4<f32>, MINE>;
        for (var n = 0u; n < MINE; n++) {
            let at = place_of_score(n, part);
            let s = score4(r, at) * powers;
            for (var d = 0u; d < 4u; d++) {
                var power = s[d] - query[at + d].lse;
#if ALIBI
                let bias = slope(group.y * GROUP + (row + at + d) % GROUP) * LOG2_E;
                power += bias * (f32(key) - f32(query[at + d].last));
#endif
                p[n][d] = exp2(power);
            }
        }
        // Whether all of the tile's queries see all of the workgroup's keys.
        let t_last = (min(row + KEYS, end) - 1u) / GROUP;
        let is_whole = row + KEYS <= end && last_seen(group.z, row / GROUP) + 1u >= end_key
            && first_seen(group.z, t_last, last_seen(group.z, t_last)) <= j0;
        if !is_whole {
            for (var n = 0u; n < MINE; n++) {
                let at = place_of_score(n, part);
                for (var d = 0u; d < 4u; d++) {
                    let z = query[at + d];
                    p[n][d] = select(0.0, p[n][d], (key <= z.last) & (key >= z.from_key) & (row + at + d < end));
                }
            }
        }
        for (var n = 0u; n < MINE; n++) {
            put4(TILE_S + r * STEP_S + place_of_score(n, part), half4_of_probabilities(p[n]));
        }
        workgroupBarrier();
        if HELD < 1u {
            scores(OWN_1, TILE_DY, subgroup);
        } else {
            scores_of_held(&own_v, TILE_DY, subgroup);
        }
        weighted(&dvalue, TILE_S, TURNED_DY, subgroup);
        workgroupBarrier();
        for (var n = 0u; n < MINE; n++) {
            let at = place_of_score(n, part);
            let dp = score4(r, at);
            var ds: vec4<f32>;
            for (var d = 0u; d < 4u; d++) {
                ds[d] = p[n][d] * (dp[d] * scale - query[at + d].delta);
            }
            put4(TILE_S + r * STEP_S + at, half4(ds));
        }
        workgroupBarrier();
        load(&next_q, KQ, place, row + KEYS, lane);
        load(&next_dy, VDY, place, row + KEYS, lane);
        load_queries(&next, place, row + KEYS, lane);
        weighted(&dkey, TILE_S, TURNED_Q, subgroup);
        workgroupBarrier();
        // Right behind the products that hide the loads: what is kept from one round to the next takes moves.
        stage_tile(&next_q, &next_dy, &next, lane);
    }
    let at = 4u * (of_part + vector_of_key(group, key));
    for (var c = 0u; c < SHARE; c++) {
        workgroupBarrier();
        show(&dkey, subgroup);
        workgroupBarrier();
        if key < params.keys {
            for (var n = 0u; n < COLUMNS; n++) {
                let column = part * COLUMNS + n;
                let to = column_shown(c, column);
                if WIDTH == 4u * C4 || to < 4u * C4 {
                    dk[at + to] = product[r * STEP_P + column];
                }
            }
        }
    }
    for (var c = 0u; c < SHARE; c++) {
        workgroupBarrier();
        show(&dvalue, subgroup);
        workgroupBarrier();
        if key < params.keys {
            for (var n = 0u; n < COLUMNS; n++) {
                let column = part * COLUMNS + n;
                let to = column_shown(c, column);
                if WIDTH == 4u * C4 || to < 4u * C4 {
                    dv[at + to] = product[r * STEP_P + column];
                }
            }
        }
    }
}
