// rounded: numbers rounded to the nearest f16, of two equally near ones the even one, and beyond 65504 to infinity. Not by a
// conversion, for these may round either way, flush small numbers to zero, or be dropped by a compiler that finds them there
// and back.
fn rounded4(four: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(four);
    // Of f16 with this exponent the last place is 2^-10 of its power of two; below 2^-14 all are multiples of 2^-24.
    let exponent = max(bits & vec4(0x7f800000u), vec4(0x38800000u));
    let places = bitcast<vec4<f32>>(vec4(0x84000000u) - exponent);
    let rounded = round(four * places) * bitcast<vec4<f32>>(exponent - vec4(0x05000000u));
    let infinity = bitcast<vec4<f32>>((bits & vec4(0x80000000u)) | vec4(0x7f800000u));
    return select(rounded, infinity, abs(four) >= vec4(65520.0));
}
