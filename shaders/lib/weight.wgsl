// weight: elements of a weight's row, whatever its dtype (src/base/packed.rs says what blocks hold). The importing file
// says `fn word(at: u32) -> u32`, a word of the weight; the header names the dtype. A row begins at word `row` and has
// `width` elements; where k lies beyond them, valid neighbours are read instead.
#if BLOCK_32
#import lib/weight_32.wgsl
#endif
#if BLOCK_64
#import lib/weight_64.wgsl
#endif
#if BLOCK_256
#import lib/weight_256.wgsl
#endif

// The four bytes of a word as floats: for AVX2 only integers with a sign are one instruction.
fn bytes(w: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>((vec4(w) >> vec4(0u, 8u, 16u, 24u)) & vec4(255u)));
}

#if F32
fn weight4(row: u32, k: u32, width: u32) -> vec4<f32> {
    let at = vec4(row) + min(vec4(k) + vec4(0u, 1u, 2u, 3u), vec4(width - 1u));
    return bitcast<vec4<f32>>(vec4(word(at.x), word(at.y), word(at.z), word(at.w)));
}
#endif
#if F16
fn pairs(w: vec2<u32>) -> vec4<f32> {
    return vec4(unpack2x16float(w.x), unpack2x16float(w.y));
}

fn weight4(row: u32, k: u32, width: u32) -> vec4<f32> {
    let at = vec2(row) + min(vec2(k / 2u) + vec2(0u, 1u), vec2(width / 2u - 1u));
    return pairs(vec2(word(at.x), word(at.y)));
}
#endif
#if BF16
fn pairs(w: vec2<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u));
}

fn weight4(row: u32, k: u32, width: u32) -> vec4<f32> {
    let at = vec2(row) + min(vec2(k / 2u) + vec2(0u, 1u), vec2(width / 2u - 1u));
    return pairs(vec2(word(at.x), word(at.y)));
}
#endif
#if BLOCK
// Blocks: an element is scale times quant plus offset; weight_scale gives scale and offset of the 16 elements around k, and
// weight_quants(row, k, four) one of the eight fours among the 32 elements around k.
fn weight4(row: u32, k: u32, width: u32) -> vec4<f32> {
    let at = min(k, width - 4u);
    let scale = weight_scale(row, at);
    return weight_quants(row, at, at % 32u / 4u) * scale.x + scale.y;
}
#endif
