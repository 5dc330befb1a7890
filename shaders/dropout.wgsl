// dropout: y = x where a random number of (seed, step, stream, index) says so, scaled up by the share that is kept, else 0.
// x may be one of several equal parts: the index is that in the whole.
struct Params { start: u32, count: u32, elements: u32, stream: u32, dropped: u32, scale: f32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> seed: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// A bijection of 32 bits of which every bit depends on all (Wellons, 2018: lowbias32).
fn mix32(v: u32) -> u32 {
    var z = v;
    z = (z ^ (z >> 16u)) * 0x7feb352du;
    z = (z ^ (z >> 15u)) * 0x846ca68bu;
    return z ^ (z >> 16u);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * WORKGROUP + id.x;
    if i >= params.count {
        return;
    }
    let key = mix32(seed[0] ^ mix32(seed[1] ^ mix32(params.stream)));
    let bits = mix32(mix32(key + seed[2] * params.elements + params.start + i) ^ key);
    y[i] = select(0.0, x[i] * params.scale, bits >= params.dropped);
}
