// weight_32: GGUF's blocks of 32: a word with scale and perhaps minimum, in the 5-bit types one with high bits, quants.

#if Q8_0
fn weight_scale(row: u32, k: u32) -> vec2<f32> {
    return vec2(unpack2x16float(word(row + k / 32u * 9u)).x, 0.0);
}

fn weight_quants(row: u32, k: u32) -> vec4<i32> {
    return bitcast<vec4<i32>>(vec4(word(row + k / 32u * 9u + 1u + k % 32u / 4u)) << vec4(24u, 16u, 8u, 0u)) >> vec4(24u);
}
#else
#if HIGH_BITS
const WORDS = 6u;
#else
const WORDS = 5u;
#endif

// The centre of quants without a minimum is in weight_quants, which is exact.
fn weight_scale(row: u32, k: u32) -> vec2<f32> {
    let v = unpack2x16float(word(row + k / 32u * WORDS));
#if MINIMUM
    return v;
#else
    return vec2(v.x, 0.0);
#endif
}

fn weight_quants(row: u32, k: u32) -> vec4<i32> {
    let at = row + k / 32u * WORDS;
    let low = bytes(word(at + WORDS - 4u + k % 16u / 4u) >> (k % 32u / 16u * 4u)) & vec4(15u);
#if HIGH_BITS
    let high = (vec4(word(at + 1u)) >> (vec4(k % 32u) + vec4(0u, 1u, 2u, 3u)) & vec4(1u)) << vec4(4u);
    let quants = bitcast<vec4<i32>>(low | high);
    let centre = 16;
#else
    let quants = bitcast<vec4<i32>>(low);
    let centre = 8;
#endif
#if MINIMUM
    return quants;
#else
    return quants - vec4(centre);
#endif
}
#endif
