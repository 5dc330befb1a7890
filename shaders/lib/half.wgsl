// half: operands as cooperative matrices take them, f16. NATIVE: rounded by the adapter's own conversion, where that was
// proved to round as operand4 does (src/run/rounding.rs).
fn half4(v: vec4<f32>) -> vec4<f16> {
#if NATIVE
    return vec4<f16>(v);
#else
    return vec4<f16>(operand4(v));
#endif
}

// The same of probabilities, where it is enough that normal numbers are rounded so: the bits that are left over, up from half on.
fn half4_of_probabilities(p: vec4<f32>) -> vec4<f16> {
#if NATIVE
    return vec4<f16>(p);
#else
    let bits = bitcast<vec4<u32>>(p);
    let last = (bits >> vec4(13u)) & vec4(1u);
    return vec4<f16>(bitcast<vec4<f32>>((bits + vec4(0xfffu) + last) & vec4(0xffffe000u)));
#endif
}
