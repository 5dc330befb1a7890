// rope: element i of a head turns with element i + half_width by the angle of the token's position; one lane a pair.
struct Params {
    pairs: u32, first_row: u32, time: u32, heads: u32, half_width: u32, positions: u32, skip: u32, turn: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> table: array<f32>;
@group(0) @binding(3) var<storage, read> offset: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let pair = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if pair >= params.pairs {
        return;
    }
    let i = pair % params.half_width;
    let head = pair / params.half_width;
    let row = params.first_row + head / params.heads;
    let position = min(offset[0] + row % params.time, params.positions - 1u);
    let angle = (position * params.half_width + i) * 2u;
    let cosine = table[angle];
    let sine = table[angle + 1u] * params.turn;
    let low = params.skip + head * 2u * params.half_width + i;
    let high = low + params.half_width;
    let a = x[low];
    let b = x[high];
    y[low] = a * cosine - b * sine;
    y[high] = b * cosine + a * sine;
}
