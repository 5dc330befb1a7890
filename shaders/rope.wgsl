// rope: item i of a head turns with item i + half_turned by the angles of the token's position, and the items behind
// those stay; one lane a pair. BOTH: after the pairs of x those of `other`, of other_heads heads.
struct Params {
    pairs: u32, other_pairs: u32, first_row: u32, time: u32, heads: u32, other_heads: u32, half_width: u32,
    half_turned: u32, positions: u32, skip: u32, other_skip: u32, turn: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Item>;
#if VECTOR
@group(0) @binding(2) var<storage, read> table: array<vec4<f32>>; // cosine, sine, cosine, sine
#else
@group(0) @binding(2) var<storage, read> table: array<vec2<f32>>; // cosine, sine
#endif
@group(0) @binding(3) var<storage, read> offset: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<Item>;
#if BOTH
@group(0) @binding(5) var<storage, read> other: array<Item>;
@group(0) @binding(6) var<storage, read_write> other_y: array<Item>;
#endif
#import lib/item.wgsl

// Two items, and what turns them.
struct Turn { low: u32, high: u32, cosine: Item, sine: Item }

// Where the token of a row stands: so many after the first of its sequence or, with STARTS, of its document.
fn position_of(row: u32) -> u32 {
    let time = row % params.time;
#if STARTS
    return u32(max(i32(time) - i32(offset[row]), 0));
#else
#if EACH
    return offset[row / params.time] + time;
#else
    return offset[0] + time;
#endif
#endif
}

fn turn(pair: u32, heads: u32, skip: u32) -> Turn {
    let i = pair % params.half_width;
    let head = pair / params.half_width;
    let row = params.first_row + head / heads;
    let start = skip + head * 2u * params.half_width;
    if i >= params.half_turned {
        return Turn(start + 2u * i, start + 2u * i + 1u, Item(1.0), Item(0.0));
    }
    let angle = min(position_of(row), params.positions - 1u) * params.half_turned + i;
#if VECTOR
    let first = table[2u * angle];
    let second = table[2u * angle + 1u];
    let cosine = vec4(first.xz, second.xz);
    let sine = vec4(first.yw, second.yw) * params.turn;
#else
    let cosine = table[angle].x;
    let sine = table[angle].y * params.turn;
#endif
    return Turn(start + i, start + i + params.half_turned, cosine, sine);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let pair = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if pair < params.pairs {
        let t = turn(pair, params.heads, params.skip);
        let a = x[t.low];
        let b = x[t.high];
        y[t.low] = a * t.cosine - b * t.sine;
        y[t.high] = b * t.cosine + a * t.sine;
        return;
    }
#if BOTH
    if pair < params.pairs + params.other_pairs {
        let t = turn(pair - params.pairs, params.other_heads, params.other_skip);
        let a = other[t.low];
        let b = other[t.high];
        other_y[t.low] = a * t.cosine - b * t.sine;
        other_y[t.high] = b * t.cosine + a * t.sine;
    }
#endif
}
