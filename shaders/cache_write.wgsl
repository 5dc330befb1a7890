// cache_write: keys[b, position + t] = k[b, t], values = v alike, in the cache's dtype, rows of `row` cells; rows beyond it
// are dropped. ROTARY: keys and queries are turned to their positions (rope.wgsl) on the way, queries into `turned`.
// A cell is what a lane writes: one f32; with F16 two f16; with BYTES a block of Q8_0, scale and 32 bytes.
struct Params {
    cells: u32, count: u32, row: u32, queries: u32, keys: u32, entry: u32,
    width: u32, heads: u32, query_heads: u32, half_turned: u32, positions: u32,
}
#if F16
alias Cell = u32;
const CELL = 2u;
#else
#if BYTES
alias Cell = u32;
const CELL = 32u;
#else
alias Cell = f32;
const CELL = 1u;
#endif
#endif
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
@group(0) @binding(3) var<storage, read_write> keys: array<Cell>;
@group(0) @binding(4) var<storage, read_write> values: array<Cell>;
@group(0) @binding(5) var<storage, read> position: array<u32>;
#import lib/query.wgsl

fn position_of(row: u32) -> u32 {
    return first_position(row / params.queries) + row % params.queries;
}

#if ROTARY
@group(0) @binding(6) var<storage, read> table: array<vec2<f32>>; // cosine, sine
@group(0) @binding(7) var<storage, read> q: array<f32>;
@group(0) @binding(8) var<storage, read_write> turned: array<f32>;

// Element i of rows of `heads` heads becomes itself times the cosine and `other` times the sine.
struct Turn { other: u32, cosine: f32, sine: f32 }

fn turn(i: u32, heads: u32) -> Turn {
    let half = params.half_turned;
    let c = i % params.width;
    if c >= 2u * half {
        return Turn(i, 1.0, 0.0);
    }
    let low = c < half;
    let at = min(position_of(i / params.width / heads), params.positions - 1u);
    let angle = table[at * half + select(c - half, c, low)];
    return Turn(select(i - half, i + half, low), angle.x, select(angle.y, -angle.y, low));
}
fn key(i: u32) -> f32 {
    let t = turn(i, params.heads);
    return k[i] * t.cosine + k[t.other] * t.sine;
}
#else
fn key(i: u32) -> f32 { return k[i]; }
#endif

fn element(i: u32, of_keys: bool) -> f32 {
    if of_keys {
        return key(i);
    }
    return v[i];
}

fn store(at: u32, cell: Cell, of_keys: bool) {
    if of_keys {
        keys[at] = cell;
    } else {
        values[at] = cell;
    }
}

// Cell `at` of the cache from the elements from i on.
#if F16
fn fill(at: u32, i: u32, of_keys: bool) {
    let x = vec2(element(i, of_keys), element(i + 1u, of_keys));
    store(at, pack2x16float(clamp(x, vec2(-65504.0), vec2(65504.0))), of_keys); // beyond, the result would be anything
}
#else
#if BYTES
fn fill(at: u32, i: u32, of_keys: bool) {
    var x: array<f32, 32>;
    var largest = 0.0;
    for (var n = 0u; n < 32u; n++) {
        x[n] = element(i + n, of_keys);
        largest = max(largest, abs(x[n]));
    }
    // Up to the next f16, bit by bit, so that quants are of the scale that readers will see: compilers take unpacking what
    // was packed for what it was before.
    let scale = bitcast<f32>((bitcast<u32>(min(largest / 127.0, 65504.0)) + 0x1fffu) & 0xffffe000u);
    let inverse = select(0.0, 1.0 / scale, scale > 0.0);
    store(9u * at, pack2x16float(vec2(scale, 0.0)), of_keys);
    for (var n = 0u; n < 32u; n += 4u) {
        let four = vec4(x[n], x[n + 1u], x[n + 2u], x[n + 3u]);
        let q = vec4<u32>(vec4<i32>(clamp(round(four * inverse), vec4(-127.0), vec4(127.0)))) & vec4(255u);
        store(9u * at + 1u + n / 4u, (q.x | (q.y << 8u)) | ((q.z << 16u) | (q.w << 24u)), of_keys);
    }
}
#else
fn fill(at: u32, i: u32, of_keys: bool) {
    store(at, element(i, of_keys), of_keys);
}
#endif
#endif

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if i >= params.count {
        return;
    }
    // Cells of keys, then of values, then elements of queries.
    if i < 2u * params.cells {
        let of_keys = i < params.cells;
        let cell = select(i - params.cells, i, of_keys);
        let row = cell / params.row;
        let t = position_of(row);
        if t < params.keys {
            fill((row / params.queries * params.keys + t) * params.row + cell % params.row, cell * CELL, of_keys);
        }
        return;
    }
#if ROTARY
    let at = i - 2u * params.cells;
    let t = turn(at, params.query_heads);
    turned[at] = q[at] * t.cosine + q[t.other] * t.sine;
#endif
}
