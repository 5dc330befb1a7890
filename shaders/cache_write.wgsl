// cache_write: cache[b, position + t] = x[b, t] in the cache's dtype, rows of `row` cells; rows beyond it are dropped.
// A cell is what a lane writes: one f32; with HALF two f16; with BYTES a block of Q8_0, scale and 32 bytes.
struct Params { count: u32, row: u32, queries: u32, keys: u32, entry: u32 }
@group(0) @binding(0) var<uniform> params: Params;
#if HALF
@group(0) @binding(1) var<storage, read> x: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> cache: array<u32>;
#else
#if BYTES
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> cache: array<u32>;
#else
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> cache: array<f32>;
#endif
#endif
@group(0) @binding(3) var<storage, read> position: array<u32>;
#import lib/query.wgsl

#if HALF
fn store(at: u32, i: u32) {
    cache[at] = pack2x16float(clamp(x[i], vec2(-65504.0), vec2(65504.0))); // beyond, the result would be anything
}
#else
#if BYTES
fn store(at: u32, i: u32) {
    var largest = vec4<f32>();
    for (var n = 0u; n < 8u; n++) {
        largest = max(largest, abs(x[8u * i + n]));
    }
    let wanted = max(max(largest.x, largest.y), max(largest.z, largest.w)) / 127.0;
    // Up to the next f16, bit by bit, so that quants are of the scale that readers will see: compilers take unpacking what
    // was packed for what it was before.
    let scale = bitcast<f32>((bitcast<u32>(min(wanted, 65504.0)) + 0x1fffu) & 0xffffe000u);
    let inverse = select(0.0, 1.0 / scale, scale > 0.0);
    cache[9u * at] = pack2x16float(vec2(scale, 0.0));
    for (var n = 0u; n < 8u; n++) {
        let q = vec4<u32>(vec4<i32>(clamp(round(x[8u * i + n] * inverse), vec4(-127.0), vec4(127.0)))) & vec4(255u);
        cache[9u * at + 1u + n] = (q.x | (q.y << 8u)) | ((q.z << 16u) | (q.w << 24u));
    }
}
#else
fn store(at: u32, i: u32) {
    cache[at] = x[i];
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
    let row = i / params.row;
    let entry = row / params.queries;
    let t = first_position(entry) + row % params.queries;
    if t < params.keys {
        store((entry * params.keys + t) * params.row + i % params.row, i);
    }
}
