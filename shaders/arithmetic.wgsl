// arithmetic: STEPS times eight multiply-adds of four lanes an invocation, all in registers, to measure the device's peak.
@group(0) @binding(0) var<storage, read_write> y: array<f32>;

// The eight chains do not wait for each other; each converges, so that no number ever is too large or too small, and the
// sum depends on all of them, so that none can be left out.
@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let start = f32(id.x & 255u) * 0.001;
    let scale = vec4<f32>(0.999, 0.998, 0.997, 0.996) - start * 0.001;
    let shift = vec4<f32>(0.001, 0.002, 0.003, 0.004) + start;
    var a = vec4<f32>(start);
    var b = a + 0.1;
    var c = a + 0.2;
    var d = a + 0.3;
    var e = a + 0.4;
    var f = a + 0.5;
    var g = a + 0.6;
    var h = a + 0.7;
    for (var i = 0u; i < STEPS; i++) {
        a = fma(a, scale, shift);
        b = fma(b, scale, shift);
        c = fma(c, scale, shift);
        d = fma(d, scale, shift);
        e = fma(e, scale, shift);
        f = fma(f, scale, shift);
        g = fma(g, scale, shift);
        h = fma(h, scale, shift);
    }
    let sum = a + b + c + d + e + f + g + h;
    y[id.x] = sum.x + sum.y + sum.z + sum.w;
}
