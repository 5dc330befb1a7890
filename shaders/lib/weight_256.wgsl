// weight_256: GGUF's blocks of 256 (`_K`), whose 16 or 32 elements have scales of their own, quantised themselves.

// Byte `i` of the weight from word `at` on.
fn byte(at: u32, i: u32) -> u32 {
    return (word(at + i / 4u) >> (i % 4u * 8u)) & 255u;
}

// The quants of 32 elements, of which no two share a word.
fn weight_quants32(row: u32, k: u32) -> array<vec4<f32>, 8> {
    var q: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) {
        q[i] = weight_quants(row, k, i);
    }
    return q;
}

#if Q2_K
fn weight_scale(row: u32, k: u32) -> vec2<f32> {
    let at = row + k / 256u * 21u;
    let scale = byte(at, k % 256u / 16u);
    return unpack2x16float(word(at + 20u)) * vec2(f32(scale & 15u), -f32(scale >> 4u));
}

fn weight_quants(row: u32, k: u32, four: u32) -> vec4<f32> {
    let at = row + k / 256u * 21u + 4u + k % 256u / 128u * 8u + four;
    return bytes((word(at) >> (k % 128u / 32u * 2u)) & 0x03030303u);
}
#endif
#if Q3_K
fn weight_scale(row: u32, k: u32) -> vec2<f32> {
    let at = row + k / 256u * 28u;
    let s = k % 256u / 16u;
    let low = (byte(at + 24u, s % 8u) >> (s / 8u * 4u)) & 15u;
    let high = (byte(at + 26u, s % 4u) >> (s / 4u * 2u)) & 3u;
    let scale = unpack2x16float(word(at + 27u)).x * f32(i32(low | (high << 4u)) - 32);
    return vec2(scale, -4.0 * scale);
}

fn weight_quants(row: u32, k: u32, four: u32) -> vec4<f32> {
    let at = row + k / 256u * 28u;
    let low = (word(at + 8u + k % 256u / 128u * 8u + four) >> (k % 128u / 32u * 2u)) & 0x03030303u;
    let high = (word(at + four) >> (k % 256u / 32u)) & 0x01010101u;
    return bytes(low | (high << 2u));
}
#endif
#if SIX_BIT_SCALES
// Q4_K and Q5_K: eight scales and eight minima of six bits in the three words after the first.
fn weight_scale(row: u32, k: u32) -> vec2<f32> {
    let at = row + k / 256u * WORDS;
    let j = k % 256u / 32u;
    let w = vec3(word(at + 1u), word(at + 2u), word(at + 3u)) >> vec3(j % 4u * 8u);
    let first = w.xy & vec2(63u);
    let second = vec2(w.z & 15u, (w.z >> 4u) & 15u) | (((w.xy >> vec2(6u)) & vec2(3u)) << vec2(4u));
    let scale = vec2<f32>(bitcast<vec2<i32>>(select(second, first, j < 4u)));
    return unpack2x16float(word(at)) * vec2(scale.x, -scale.y);
}

fn weight_quants(row: u32, k: u32, four: u32) -> vec4<f32> {
    let at = row + k / 256u * WORDS;
    let j = k % 256u / 32u;
    let low = (word(at + WORDS - 32u + j / 2u * 8u + four) >> (j % 2u * 4u)) & 0x0f0f0f0fu;
#if HIGH_BITS
    return bytes(low | (((word(at + 4u + four) >> j) & 0x01010101u) << 4u));
#else
    return bytes(low);
#endif
}
#if HIGH_BITS
const WORDS = 44u;
#else
const WORDS = 36u;
#endif
#endif
#if Q6_K
fn weight_scale(row: u32, k: u32) -> vec2<f32> {
    let at = row + k / 256u * 53u;
    let signed = i32(byte(at + 48u, k % 256u / 16u) << 24u) >> 24u;
    let scale = unpack2x16float(word(at + 52u)).x * f32(signed);
    return vec2(scale, -32.0 * scale);
}

fn weight_quants(row: u32, k: u32, four: u32) -> vec4<f32> {
    let half = k % 256u / 128u;
    let part = k % 128u / 32u;
    let at = row + k / 256u * 53u + four;
    let low = (word(at + half * 16u + part % 2u * 8u) >> (part / 2u * 4u)) & 0x0f0f0f0fu;
    let high = (word(at + 32u + half * 8u) >> (part * 2u)) & 0x03030303u;
    return bytes(low | (high << 4u));
}
#endif
