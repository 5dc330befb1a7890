// attention_coop: attention.wgsl by cooperative matrices (lib/attention_coop.wgsl), tier 4. A workgroup makes ROWS queries,
// numbered as there, in tiles of KEYS keys. The lanes of a row have its softmax and accumulator in registers.
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

const TILE_Q = 0u;
// Keys, then values.
const TILE_K = ROWS * STEP;
const TILE_P = TILE_K + KEYS * STEP;
const TILES = TILE_P + ROWS * STEP_S;
// What the lanes of a row tell each other.
var<workgroup> told: array<f32, LANES>;

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
    for (var e = lane; e < ROWS * (WIDTH / 4u); e += LANES) {
        let c = e % (WIDTH / 4u);
        let at = vector_of_row(group.z, group.y, row0 + e / (WIDTH / 4u)) + min(c, C4 - 1u);
        stage(TILE_Q, e / (WIDTH / 4u), c, q[at]);
    }
    var largest = MASKED;
    var sum = 0.0;
    var acc: array<f32, COLUMNS>;
#if CARRY
    largest = lse_before[(group.z * params.heads + head) * params.queries + t];
    sum = select(0.0, 1.0, part == 0u);
    for (var i = 0u; i < COLUMNS; i++) {
        let c = min(i * PARTS + part, 4u * C4 - 1u);
        acc[i] = o_before[4u * vector_of_row(group.z, group.y, row0 + r) + c] * UNIT;
    }
#endif
    for (var j = begin; j < end; j += KEYS) {
        for (var e = lane; e < KEYS * (WIDTH / 4u); e += LANES) {
            let c = e % (WIDTH / 4u);
            let key = min(j + e / (WIDTH / 4u), end - 1u);
            stage(TILE_K, e / (WIDTH / 4u), c, k4(vector_of_key(group.z, group.y, key) + min(c, C4 - 1u)));
        }
        workgroupBarrier();
        scores(TILE_Q, TILE_K, subgroup);
        workgroupBarrier();
        var s: array<f32, MINE>;
        var m = largest;
        for (var n = 0u; n < MINE; n++) {
            let key = j + n * PARTS + part;
            var score = product[r * STEP_P + n * PARTS + part] * params.scale;
#if ALIBI
            score += slope(head) * (f32(key) - f32(last));
#endif
            s[n] = select(MASKED, score, key <= last && key >= from_key);
            m = max(m, s[n]);
        }
        told[lane] = m;
        workgroupBarrier();
        for (var i = 0u; i < PARTS; i++) {
            m = max(m, told[r * PARTS + i]);
        }
        let rescale = exp(largest - m);
        largest = m;
        sum *= rescale;
        for (var n = 0u; n < MINE; n++) {
            let p = exp(s[n] - m);
            sum += p;
            tiles[TILE_P + r * STEP_S + n * PARTS + part] = f16(operand(p * UNIT));
        }
        for (var e = lane; e < KEYS * (WIDTH / 4u); e += LANES) {
            let c = e % (WIDTH / 4u);
            let key = min(j + e / (WIDTH / 4u), end - 1u);
            stage(TILE_K, e / (WIDTH / 4u), c, v4(vector_of_key(group.z, group.y, key) + min(c, C4 - 1u)));
        }
        workgroupBarrier();
        weighted(TILE_P, TILE_K, subgroup);
        workgroupBarrier();
        for (var i = 0u; i < COLUMNS; i++) {
            acc[i] = acc[i] * rescale + product[r * STEP_P + i * PARTS + part];
        }
    }
    told[lane] = sum;
    workgroupBarrier();
    sum = 0.0;
    for (var i = 0u; i < PARTS; i++) {
        sum += told[r * PARTS + i];
    }
    if row0 + r < rows {
        let at = 4u * vector_of_row(group.z, group.y, row0 + r);
        for (var i = 0u; i < COLUMNS; i++) {
            if i * PARTS + part < 4u * C4 {
                o[at + i * PARTS + part] = acc[i] / (sum * UNIT);
            }
        }
        if part == 0u {
            lse[(group.z * params.heads + head) * params.queries + t] = largest + log(sum);
        }
    }
}
