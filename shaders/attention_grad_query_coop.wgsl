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

const TILE_Q = 0u;
const TILE_DY = ROWS * STEP;
const TILE_K = 2u * ROWS * STEP;
const TILE_V = TILE_K + KEYS * STEP;
const TILE_S = TILE_V + KEYS * STEP;
const TILES = TILE_S + ROWS * STEP_S;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let rows = params.queries * GROUP;
    let row0 = group.x * ROWS;
    let begin = begin_key(group.z, row0 / GROUP);
    let end = last_seen(group.z, (min(row0 + ROWS, rows) - 1u) / GROUP) + 1u;
    let subgroup = lane / SUBGROUP;
    let r = lane / PARTS;
    let part = lane % PARTS;
    let t = min(row0 + r, rows - 1u) / GROUP;
    let head = group.y * GROUP + min(row0 + r, rows - 1u) % GROUP;
    let last = last_seen(group.z, t);
    let from_key = first_seen(group.z, t, last);
    let stat = stats[(group.z * params.heads + head) * params.queries + t];
    for (var e = lane; e < ROWS * (WIDTH / 4u); e += LANES) {
        let c = e % (WIDTH / 4u);
        let at = vector_of_row(group.z, group.y, row0 + e / (WIDTH / 4u)) + min(c, C4 - 1u);
        stage(TILE_Q, e / (WIDTH / 4u), c, q[at]);
        stage(TILE_DY, e / (WIDTH / 4u), c, dy[at]);
    }
    var acc: array<f32, COLUMNS>;
    for (var j = begin; j < end; j += KEYS) {
        for (var e = lane; e < KEYS * (WIDTH / 4u); e += LANES) {
            let c = e % (WIDTH / 4u);
            let at = vector_of_key(group.z, group.y, min(j + e / (WIDTH / 4u), end - 1u)) + min(c, C4 - 1u);
            stage(TILE_K, e / (WIDTH / 4u), c, k[at]);
            stage(TILE_V, e / (WIDTH / 4u), c, v[at]);
        }
        workgroupBarrier();
        scores(TILE_Q, TILE_K, subgroup);
        workgroupBarrier();
        var p: array<f32, MINE>;
        for (var n = 0u; n < MINE; n++) {
            let key = j + n * PARTS + part;
            var score = product[r * STEP_P + n * PARTS + part] * params.scale;
#if ALIBI
            score += slope(head) * (f32(key) - f32(last));
#endif
            p[n] = select(0.0, exp(score - stat.x), key <= last && key >= from_key);
        }
        workgroupBarrier();
        scores(TILE_DY, TILE_V, subgroup);
        workgroupBarrier();
        for (var n = 0u; n < MINE; n++) {
            let at = n * PARTS + part;
            let ds = p[n] * (product[r * STEP_P + at] - stat.y) * params.scale;
            tiles[TILE_S + r * STEP_S + at] = f16(operand(ds));
        }
        workgroupBarrier();
        weighted(TILE_S, TILE_K, subgroup);
        workgroupBarrier();
        for (var i = 0u; i < COLUMNS; i++) {
            acc[i] += product[r * STEP_P + i * PARTS + part];
        }
    }
    if row0 + r < rows {
        let at = 4u * vector_of_row(group.z, group.y, row0 + r);
        for (var i = 0u; i < COLUMNS; i++) {
            if i * PARTS + part < 4u * C4 {
                dq[at + i * PARTS + part] = acc[i];
            }
        }
    }
}
