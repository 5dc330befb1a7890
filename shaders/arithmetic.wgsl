// arithmetic: STEPS times two multiply-adds of four lanes an invocation, all in registers, to measure the device's peak.
// HALF: the factors are f16 and widened where they are multiplied; sums are f32 as ever.
#if HALF
enable f16;
alias Factor = f16;
#else
alias Factor = f32;
#endif
@group(0) @binding(0) var<storage, read_write> y: array<f32>;

// Eight chains do not wait for each other and fit the registers of a CPU too. Each converges, so that no number ever is too
// large or too small; none can be left out, since the sum depends on all.
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let start = f32(id.x & 255u) * 0.001;
    let scale = vec4<Factor>(Factor(0.999 - start * 0.001));
    let shift = vec4<f32>(0.001 + start);
    var a = vec4<f32>(0.0, 0.1, 0.2, 0.3) + start;
    var b = vec4<f32>(0.4, 0.5, 0.6, 0.7) + start;
    for (var i = 0u; i < STEPS; i++) {
#if FUSED
        a = fma(a, vec4<f32>(scale), shift);
        b = fma(b, vec4<f32>(scale), shift);
#else
        a = a * vec4<f32>(scale) + shift;
        b = b * vec4<f32>(scale) + shift;
#endif
    }
    let sum = a + b;
    y[id.x] = sum.x + sum.y + sum.z + sum.w;
}
