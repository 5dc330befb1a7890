// attention_tile: attention.wgsl through shared memory, for GPUs. A workgroup makes ROWS queries, numbered as there, over tiles
// of KEYS keys (lib/attention_tile.wgsl). HALF: operands of both products are rounded to f16, and STAGED as such. SHUFFLE: the
// sixteen lanes of a row lie in one subgroup.
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

// The largest of sixteen lanes' values, and their sum, for each of them.
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
    workgroupBarrier();
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

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    // Later queries see more keys: the longest work begins first.
    let group = vec3(groups.x - 1u - id.x, id.yz);
    let rows = params.queries * GROUP;
    let row0 = group.x * ROWS;
    let begin = begin_key(group.z, row0 / GROUP);
    let end = last_seen(group.z, (min(row0 + ROWS, rows) - 1u) / GROUP) + 1u;
    let first_row = row0 + lane / 16u * 4u * HIGH;
    let own = lane % 16u;
    var last: array<vec4<u32>, HIGH>;
    var from_key: array<vec4<u32>, HIGH>;
    var largest: array<vec4<f32>, HIGH>;
    var sum: array<vec4<f32>, HIGH>;
    var acc: Sums;
    for (var h = 0u; h < HIGH; h++) {
        largest[h] = vec4(MASKED);
        for (var i = 0u; i < 4u; i++) {
            let t = min(first_row + 4u * h + i, rows - 1u) / GROUP;
            last[h][i] = last_seen(group.z, t);
            from_key[h][i] = first_seen(group.z, t, last[h][i]);
        }
    }
#if CARRY
    // The sum before, one where the largest is its logarithm, goes to one of the sixteen.
    for (var h = 0u; h < HIGH; h++) {
        sum[h] = vec4(select(0.0, 1.0, own == 0u));
        for (var i = 0u; i < 4u; i++) {
            let row = min(first_row + 4u * h + i, rows - 1u);
            largest[h][i] = lse_before[stat_of_row(group, row)];
            for (var n = 0u; n < COLUMNS; n++) {
                acc[h][n][i] = o_before[vector_of_row(group, row) + min(16u * n + own, C4 - 1u)] * UNIT;
            }
        }
    }
#endif
    let place = Place(group, row0, end);
    var next: Ahead;
    begin_tiles(&next, place, begin, lane);
    for (var j = begin; j < end; j += KEYS) {
        var s: Scores;
        products(&s, &next, K, place, j, SLAB_OF + V, lane);
        for (var h = 0u; h < HIGH; h++) {
            var m = largest[h];
            for (var n = 0u; n < MINE; n++) {
                let i = vec4(j + 16u * n + own);
                let seen = (i <= last[h]) & (i >= from_key[h]);
                s[n][h] = select(vec4(MASKED), biased(s[n][h], group.y, first_row + 4u * h, i.x, last[h]), seen);
                m = max(m, s[n][h]);
            }
            m = largest_of_sixteen(m, lane);
            let rescale = exp(largest[h] - m);
            largest[h] = m;
            sum[h] *= rescale;
            for (var n = 0u; n < MINE; n++) {
                let p = exp(s[n][h] - m);
                sum[h] += p;
                s[n][h] = p * UNIT;
            }
            for (var n = 0u; n < COLUMNS; n++) {
                for (var i = 0u; i < 4u; i++) {
                    acc[h][n][i] *= rescale[i];
                }
            }
        }
        weighted(&acc, &s, &next, V, place, j, CHUNK_OF + K, j + KEYS, lane);
    }
    for (var h = 0u; h < HIGH; h++) {
        sum[h] = sum_of_sixteen(sum[h], lane);
        for (var i = 0u; i < 4u; i++) {
            let row = first_row + 4u * h + i;
            if row < rows {
                let at = vector_of_row(group, row);
                for (var n = 0u; n < COLUMNS; n++) {
                    if 16u * n + own < C4 {
                        o[at + 16u * n + own] = acc[h][n][i] / (sum[h][i] * UNIT);
                    }
                }
                if own == 0u {
                    lse[stat_of_row(group, row)] = largest[h][i] + log(sum[h][i]);
                }
            }
        }
    }
}
