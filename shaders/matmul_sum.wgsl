// matmul_sum: c = the sum of partial products, each the whole of c over a part of the dim that is summed, in the order of
// these parts. The second stage of the kernels that split it.
struct Params {
    count: u32, // elements of c
    slices: u32, // partial products
    row: u32, // workgroups in x
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<Written>;
#if second
@group(0) @binding(3) var<storage, read_write> beside: array<Written>;
#hook second
#endif
#hook epilogue
#import lib/written.wgsl

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * params.row + group.x) * WORKGROUP + lane;
    if i < params.count {
        let count = params.count;
        let slices = params.slices;
        var sum = parts[i];
        // Four loads are under way at once.
        for (var s = 1u; s < slices; s += 4u) {
            var v: vec4<f32>;
            for (var j = 0u; j < 4u; j++) {
                v[j] = parts[min(s + j, slices - 1u) * count + i];
            }
            v = select(v, vec4<f32>(), vec4(s) + vec4(0u, 1u, 2u, 3u) >= vec4(slices));
            sum = (((sum + v.x) + v.y) + v.z) + v.w;
        }
#if second
        let other = second(sum, i);
#endif
        c[i] = written(epilogue(sum, i));
#if second
        beside[i] = written(other);
#endif
    }
}
