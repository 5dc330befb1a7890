// halves: four numbers in f16, two a word. They are rounded as operands of products are (lib/operand.wgsl, with HALF), and their
// bits are put together by arithmetic, too: no conversion of an adapter's is trusted with either.
#import lib/operand.wgsl
fn halves(four: vec4<f32>) -> vec2<u32> {
    let rounded = operand4(four);
    let size = abs(rounded);
    // Exponents count from another place; infinity's is the largest. Below 2^-14 all are multiples of 2^-24.
    let normal = min((bitcast<vec4<u32>>(size) - vec4(0x38000000u)) >> vec4(13u), vec4(0x7c00u));
    let small = vec4<u32>(min(size, vec4(1.0)) * 16777216.0);
    let sign = (bitcast<vec4<u32>>(rounded) >> vec4(16u)) & vec4(0x8000u);
    let half = select(normal, small, size < vec4(6.103515625e-5)) | sign;
    return half.xz | (half.yw << vec2(16u));
}
