// attention_grad_query_coop: attention_grad_query.wgsl by cooperative matrices (lib/attention_coop.wgsl), tier 4: rows and
// tiles as in attention_coop.wgsl. p = exp(s - lse), ds = p * (dy . v - delta), dq = scale * sum of ds * k.
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
@group(0) @binding(7) var<storage, read_write> dq: array<f32>;
#import lib/operand.wgsl
#import lib/query.wgsl
#import lib/attention_coop.wgsl

const OWNS = 2u;
// The pairs: q and k, dy and v.
const QK = 0u;
const DYV = 1u;
fn own_at(group: vec3<u32>, row: u32) -> u32 { return vector_of_row(group, row); }
fn own_vector(pair: u32, at: u32) -> vec4<f32> {
    if pair == QK {
        return q[at];
    }
    return dy[at];
}
fn streamed_at(group: vec3<u32>, row: u32, end: u32) -> u32 { return vector_of_key(group, min(row, end - 1u)); }
fn streamed_vector(pair: u32, at: u32) -> vec4<f32> {
    if pair == QK {
        return k[at];
    }
    return v[at];
}

const TILE_TURNED = 0u;
const TILE_K = WIDTH * STEP_S;
const TILE_V = TILE_K + KEYS * STEP;
// Once there are scores keys and values are no longer needed as they are.
const TILE_S = TILE_K;
const TILES = TILE_K + max(2u * KEYS * STEP, ROWS * STEP_S);

// Keys as they are and by columns, and values.
fn stage_tile(k: ptr<function, Ahead>, v: ptr<function, Ahead>, lane: u32) {
    stage(k, TILE_K, lane);
    stage_turned(k, TILE_TURNED, lane);
    stage(v, TILE_V, lane);
}

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
    let r = row_of(lane);
    let part = lane % ACROSS;
    let row = row0 + r;
    let t = min(row, rows - 1u) / GROUP;
    let last = last_seen(group.z, t);
    let from_key = first_seen(group.z, t, last);
    let stat = stats[stat_of_row(group, min(row, rows - 1u))];
    let scale = params.scale;
    let powers = scale * LOG2_E;
    let base = -stat.x * LOG2_E;
#if ALIBI
    let bias = slope(group.y * GROUP + min(row, rows - 1u) % GROUP) * LOG2_E;
#endif
    let place = Place(group, row0, end);
    var own_q: Own;
    var own_dy: Own;
    begin_own(&own_q, OWN_0, QK, place, subgroup, lane);
    begin_own(&own_dy, OWN_1, DYV, place, subgroup, lane);
    var sums: Sums;
    var next_k: Ahead;
    var next_v: Ahead;
    load(&next_k, QK, place, begin, lane);
    load(&next_v, DYV, place, begin, lane);
    stage_tile(&next_k, &next_v, lane);
    for (var j = begin; j < end; j += KEYS) {
        workgroupBarrier();
        if HELD < 2u {
            scores(OWN_0, TILE_K, subgroup);
        } else {
            scores_of_held(&own_q, TILE_K, subgroup);
        }
        workgroupBarrier();
        var p: array<vec4<f32>, MINE>;
        for (var n = 0u; n < MINE; n++) {
            var power = score4(r, place_of_score(n, part)) * powers + base;
#if ALIBI
            let key = vec4(j + place_of_score(n, part)) + vec4(0u, 1u, 2u, 3u);
            power += bias * (vec4<f32>(key) - f32(last));
#endif
            p[n] = exp2(power) * scale;
        }
        if j < all_from || j + KEYS > all_end {
            for (var n = 0u; n < MINE; n++) {
                let key = vec4(j + place_of_score(n, part)) + vec4(0u, 1u, 2u, 3u);
                p[n] = select(vec4<f32>(), p[n], (key <= vec4(last)) & (key >= vec4(from_key)));
            }
        }
        workgroupBarrier();
        if HELD < 1u {
            scores(OWN_1, TILE_V, subgroup);
        } else {
            scores_of_held(&own_dy, TILE_V, subgroup);
        }
        workgroupBarrier();
        for (var n = 0u; n < MINE; n++) {
            let at = place_of_score(n, part);
            put4(TILE_S + r * STEP_S + at, half4(p[n] * (score4(r, at) - stat.y)));
        }
        workgroupBarrier();
        load(&next_k, QK, place, j + KEYS, lane);
        load(&next_v, DYV, place, j + KEYS, lane);
        weighted(&sums, TILE_S, TILE_TURNED, subgroup);
        workgroupBarrier();
        // Right behind the products that hide the loads: what is kept from one round to the next takes moves.
        stage_tile(&next_k, &next_v, lane);
    }
    let at = 4u * vector_of_row(group, row);
    for (var c = 0u; c < SHARE; c++) {
        workgroupBarrier();
        show(&sums, subgroup);
        workgroupBarrier();
        if row < rows {
            for (var n = 0u; n < COLUMNS; n++) {
                let column = part * COLUMNS + n;
                let to = column_shown(c, column);
                if WIDTH == 4u * C4 || to < 4u * C4 {
                    dq[at + to] = product[r * STEP_P + column];
                }
            }
        }
    }
}
