// attention_grad_key_value_coop: attention_grad_key_value.wgsl by cooperative matrices (lib/attention_coop.wgsl), tier 4. A
// workgroup makes ROWS keys, and KEYS is how many queries are staged at a time, as in attention_grad_key_value_tile.wgsl.
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

const TILE_K = 0u;
const TILE_V = ROWS * STEP;
const TILE_Q = 2u * ROWS * STEP;
const TILE_DY = TILE_Q + KEYS * STEP;
const TILE_P = TILE_DY + KEYS * STEP;
const TILE_S = TILE_P + ROWS * STEP_S;
const TILES = TILE_S + ROWS * STEP_S;

// A query that streams by: its last key, the first, its head, and lse and delta.
struct Query { last: u32, from_key: u32, head: u32, stat: vec2<f32> }

fn query(entry: u32, kv_head: u32, row: u32) -> Query {
    let t = min(row / GROUP, params.queries - 1u);
    let head = kv_head * GROUP + row % GROUP;
    let last = last_seen(entry, t);
    let stat = stats[(entry * params.heads + head) * params.queries + t];
    return Query(last, first_seen(entry, t, last), head, stat);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let j0 = group.x * ROWS;
    let begin = begin_query(group.z, j0) * GROUP;
    let end = end_query(group.z, min(j0 + ROWS, params.keys) - 1u) * GROUP;
    let subgroup = lane / SUBGROUP;
    let r = lane / PARTS;
    let part = lane % PARTS;
    let key = j0 + r;
    for (var e = lane; e < ROWS * (WIDTH / 4u); e += LANES) {
        let c = e % (WIDTH / 4u);
        let own = min(j0 + e / (WIDTH / 4u), params.keys - 1u);
        let at = vector_of_key(group.z, group.y, own) + min(c, C4 - 1u);
        stage(TILE_K, e / (WIDTH / 4u), c, k[at]);
        stage(TILE_V, e / (WIDTH / 4u), c, v[at]);
    }
    var dkey: array<f32, COLUMNS>;
    var dvalue: array<f32, COLUMNS>;
    for (var row = begin; row < end; row += KEYS) {
        for (var e = lane; e < KEYS * (WIDTH / 4u); e += LANES) {
            let c = e % (WIDTH / 4u);
            let at = vector_of_row(group.z, group.y, row + e / (WIDTH / 4u)) + min(c, C4 - 1u);
            stage(TILE_Q, e / (WIDTH / 4u), c, q[at]);
            stage(TILE_DY, e / (WIDTH / 4u), c, dy[at]);
        }
        workgroupBarrier();
        scores(TILE_K, TILE_Q, subgroup);
        workgroupBarrier();
        var p: array<f32, MINE>;
        for (var n = 0u; n < MINE; n++) {
            let at = n * PARTS + part;
            let z = query(group.z, group.y, row + at);
            var score = product[r * STEP_P + at] * params.scale;
#if ALIBI
            score += slope(z.head) * (f32(key) - f32(z.last));
#endif
            let seen = key <= z.last && key >= z.from_key && row + at < end;
            p[n] = select(0.0, exp(score - z.stat.x), seen);
            tiles[TILE_P + r * STEP_S + at] = f16(operand(p[n]));
        }
        workgroupBarrier();
        scores(TILE_V, TILE_DY, subgroup);
        workgroupBarrier();
        for (var n = 0u; n < MINE; n++) {
            let at = n * PARTS + part;
            let delta = query(group.z, group.y, row + at).stat.y;
            let ds = p[n] * (product[r * STEP_P + at] - delta) * params.scale;
            tiles[TILE_S + r * STEP_S + at] = f16(operand(ds));
        }
        workgroupBarrier();
        weighted(TILE_P, TILE_DY, subgroup);
        workgroupBarrier();
        for (var i = 0u; i < COLUMNS; i++) {
            dvalue[i] += product[r * STEP_P + i * PARTS + part];
        }
        workgroupBarrier();
        weighted(TILE_S, TILE_Q, subgroup);
        workgroupBarrier();
        for (var i = 0u; i < COLUMNS; i++) {
            dkey[i] += product[r * STEP_P + i * PARTS + part];
        }
    }
    if key < params.keys {
        let at = 4u * vector_of_key(group.z, group.y, key);
        for (var i = 0u; i < COLUMNS; i++) {
            if i * PARTS + part < 4u * C4 {
                dk[at + i * PARTS + part] = dkey[i];
                dv[at + i * PARTS + part] = dvalue[i];
            }
        }
    }
}
