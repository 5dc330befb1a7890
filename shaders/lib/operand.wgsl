// operand: an operand of a product as it is multiplied. HALF: rounded to f16 (lib/rounded.wgsl); else as it is.
#if HALF
#import lib/rounded.wgsl
fn operand4(four: vec4<f32>) -> vec4<f32> {
    return rounded4(four);
}
#else
fn operand4(four: vec4<f32>) -> vec4<f32> {
    return four;
}
#endif

fn operand(one: f32) -> f32 {
    return operand4(vec4(one)).x;
}

// The same of what may be stored in f16 (F16, A_F16), of which nothing is left to round then.
fn weight_operand4(four: vec4<f32>) -> vec4<f32> {
#if F16
    return four;
#else
    return operand4(four);
#endif
}
fn operand_a4(four: vec4<f32>) -> vec4<f32> {
#if A_F16
    return four;
#else
    return operand4(four);
#endif
}
