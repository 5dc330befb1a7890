// attention_tile: attention.wgsl through shared memory, for GPUs. A workgroup makes ROWS queries, numbered as there, in
// tiles of KEYS keys: sixteen lanes share four rows, and of the scores each makes KEYS/16 columns, of o every 16th vector.
// A head is staged in chunks of CHUNK vectors; where it is one, queries are staged once. HALF: operands of both products
// are rounded to f16, and STAGED as such. SHUFFLE: the sixteen lie in one subgroup.
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
@group(0) @binding(5) var<storage, read_write> o: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;
#if CARRY
@group(0) @binding(7) var<storage, read> o_before: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read> lse_before: array<f32>;
#endif
#import lib/cache.wgsl
#import lib/operand.wgsl
#import lib/query.wgsl
#import lib/attention_tile.wgsl

var<workgroup> tile_q: array<Staged, ROWS * STEP>;
// Keys, then values.
var<workgroup> tile_k: array<Staged, KEYS * STEP>;
// The probabilities of four rows.
var<workgroup> tile_p: array<Staged, KEYS * FOURS>;

// The largest of sixteen lanes' values, and their sum, for each of them. Between two calls lies a barrier.
#if SHUFFLE
fn largest_of_sixteen(own: vec4<f32>, lane: u32) -> vec4<f32> {
    var m = own;
    m = max(m, subgroupShuffleXor(m, 8u));
    m = max(m, subgroupShuffleXor(m, 4u));
    m = max(m, subgroupShuffleXor(m, 2u));
    return max(m, subgroupShuffleXor(m, 1u));
}
fn sum_of_sixteen(own: vec4<f32>, lane: u32) -> vec4<f32> {
    var sum = own;
    sum += subgroupShuffleXor(sum, 8u);
    sum += subgroupShuffleXor(sum, 4u);
    sum += subgroupShuffleXor(sum, 2u);
    return sum + subgroupShuffleXor(sum, 1u);
}
#else
var<workgroup> sixteen: array<vec4<f32>, LANES>;
fn largest_of_sixteen(own: vec4<f32>, lane: u32) -> vec4<f32> {
    sixteen[lane] = own;
    workgroupBarrier();
    var m = own;
    for (var i = 0u; i < 16u; i++) {
        m = max(m, sixteen[lane / 16u * 16u + i]);
    }
    return m;
}
fn sum_of_sixteen(own: vec4<f32>, lane: u32) -> vec4<f32> {
    workgroupBarrier();
    sixteen[lane] = own;
    workgroupBarrier();
    var sum = vec4<f32>();
    for (var i = 0u; i < 16u; i++) {
        sum += sixteen[lane / 16u * 16u + i];
    }
    return sum;
}
#endif

fn stage_q(entry: u32, kv_head: u32, row0: u32, chunk: u32, lane: u32) {
    for (var e = lane; e < ROWS * CHUNK; e += LANES) {
        let c = chunk * CHUNK + e % CHUNK;
        let at = vector_of_row(entry, kv_head, row0 + e / CHUNK) + min(c, C4 - 1u);
        tile_q[e / CHUNK * STEP + e % CHUNK] = Staged(select(vec4<f32>(), operand4(q[at]), c < C4));
    }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let rows = params.queries * GROUP;
    let row0 = group.x * ROWS;
    let begin = begin_key(group.z, row0 / GROUP);
    let end = last_seen(group.z, (min(row0 + ROWS, rows) - 1u) / GROUP) + 1u;
    let four = lane / 16u;
    let own = lane % 16u;
    var last: vec4<u32>;
    var from_key: vec4<u32>;
    for (var i = 0u; i < 4u; i++) {
        let t = min(row0 + 4u * four + i, rows - 1u) / GROUP;
        last[i] = last_seen(group.z, t);
        from_key[i] = first_seen(group.z, t, last[i]);
    }
    var largest = vec4(MASKED);
    var sum = vec4<f32>();
    var acc: array<array<array<vec4<f32>, 4>, COLUMNS>, CHUNKS>;
#if CARRY
    // The sum before, one where the largest is its logarithm, goes to one of the sixteen.
    sum = vec4(select(0.0, 1.0, own == 0u));
    for (var i = 0u; i < 4u; i++) {
        let row = min(row0 + 4u * four + i, rows - 1u);
        largest[i] = lse_before[(group.z * params.heads + group.y * GROUP + row % GROUP) * params.queries + row / GROUP];
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            for (var n = 0u; n < COLUMNS; n++) {
                let c = min(chunk * CHUNK + min(16u * n + own, CHUNK - 1u), C4 - 1u);
                acc[chunk][n][i] = o_before[vector_of_row(group.z, group.y, row) + c] * UNIT;
            }
        }
    }
#endif
    for (var j = begin; j < end; j += KEYS) {
        var s: array<vec4<f32>, MINE>;
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            workgroupBarrier();
            if CHUNKS > 1u || j == begin {
                stage_q(group.z, group.y, row0, chunk, lane);
            }
            for (var e = lane; e < KEYS * CHUNK; e += LANES) {
                let c = chunk * CHUNK + e % CHUNK;
                let at = vector_of_key(group.z, group.y, min(j + e / CHUNK, end - 1u)) + min(c, C4 - 1u);
                tile_k[e / CHUNK * STEP + e % CHUNK] = Staged(operand4(k4(at)));
            }
            workgroupBarrier();
            for (var c = 0u; c < CHUNK; c++) {
                let q0 = vec4<f32>(tile_q[4u * four * STEP + c]);
                let q1 = vec4<f32>(tile_q[(4u * four + 1u) * STEP + c]);
                let q2 = vec4<f32>(tile_q[(4u * four + 2u) * STEP + c]);
                let q3 = vec4<f32>(tile_q[(4u * four + 3u) * STEP + c]);
                for (var n = 0u; n < MINE; n++) {
                    let x = vec4<f32>(tile_k[(16u * n + own) * STEP + c]);
                    s[n] += vec4(dot(q0, x), dot(q1, x), dot(q2, x), dot(q3, x));
                }
            }
        }
        var m = largest;
        for (var n = 0u; n < MINE; n++) {
            let i = vec4(j + 16u * n + own);
            s[n] = select(vec4(MASKED), biased(s[n], group.y, row0 + 4u * four, i.x, last), (i <= last) & (i >= from_key));
            m = max(m, s[n]);
        }
        m = largest_of_sixteen(m, lane);
        let rescale = exp(largest - m);
        largest = m;
        sum *= rescale;
        for (var n = 0u; n < MINE; n++) {
            let p = exp(s[n] - m);
            sum += p;
            tile_p[(16u * n + own) * FOURS + four] = Staged(operand4(p * UNIT));
        }
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            for (var n = 0u; n < COLUMNS; n++) {
                for (var i = 0u; i < 4u; i++) {
                    acc[chunk][n][i] *= rescale[i];
                }
            }
            workgroupBarrier();
            for (var e = lane; e < KEYS * CHUNK; e += LANES) {
                let c = min(chunk * CHUNK + e % CHUNK, C4 - 1u);
                let at = vector_of_key(group.z, group.y, min(j + e / CHUNK, end - 1u)) + c;
                tile_k[e / CHUNK * STEP + e % CHUNK] = Staged(operand4(v4(at)));
            }
            workgroupBarrier();
            for (var i = 0u; i < KEYS; i++) {
                let p = vec4<f32>(tile_p[i * FOURS + four]);
                for (var n = 0u; n < COLUMNS; n++) {
                    let x = vec4<f32>(tile_k[i * STEP + min(16u * n + own, CHUNK - 1u)]);
                    acc[chunk][n][0] += p.x * x;
                    acc[chunk][n][1] += p.y * x;
                    acc[chunk][n][2] += p.z * x;
                    acc[chunk][n][3] += p.w * x;
                }
            }
        }
    }
    sum = sum_of_sixteen(sum, lane);
    for (var i = 0u; i < 4u; i++) {
        let row = row0 + 4u * four + i;
        if row < rows {
            let at = vector_of_row(group.z, group.y, row);
            for (var chunk = 0u; chunk < CHUNKS; chunk++) {
                for (var n = 0u; n < COLUMNS; n++) {
                    let c = 16u * n + own;
                    if c < CHUNK && chunk * CHUNK + c < C4 {
                        o[at + chunk * CHUNK + c] = acc[chunk][n][i] / (sum[i] * UNIT);
                    }
                }
            }
            if own == 0u {
                let head = group.z * params.heads + group.y * GROUP + row % GROUP;
                lse[head * params.queries + row / GROUP] = largest[i] + log(sum[i]);
            }
        }
    }
}
