// cast: a copy in f16 of a range of a page of f32, four elements a lane, rounded to the nearest, ties to even.
#import lib/halves.wgsl
struct Params { count: u32 } // fours
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> p: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> copy: array<vec2<u32>>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * groups.x + group.x) * WORKGROUP + lane;
    if i < params.count {
        copy[i] = halves(p[i]);
    }
}
