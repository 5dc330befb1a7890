// operand: an operand of a product as it is multiplied. HALF: rounded to the nearest f16, of two equally near ones the even
// one, and beyond 65504 to infinity; else as it is. By its bits, for conversions may round either way, flush small
// numbers to zero, or be dropped by a compiler that finds them there and back.
#if HALF
fn operand4(x: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    let size = bits & vec4(0x7fffffffu);
    let normal = (bits + 0xfffu + ((bits >> vec4(13u)) & vec4(1u))) & vec4(0xffffe000u);
    // Below 2^-14 f16 are multiples of 2^-24.
    let small = bitcast<vec4<u32>>(round(x * 16777216.0) * 5.9604644775390625e-8);
    let rounded = select(normal, small, size < vec4(0x38800000u));
    let infinity = (bits & vec4(0x80000000u)) | vec4(0x7f800000u);
    let finite_or_not = select(rounded, infinity, size >= vec4(0x477ff000u));
    return bitcast<vec4<f32>>(select(finite_or_not, bits, size > vec4(0x7f800000u)));
}
#else
fn operand4(x: vec4<f32>) -> vec4<f32> {
    return x;
}
#endif

fn operand(x: f32) -> f32 {
    return operand4(vec4(x)).x;
}
