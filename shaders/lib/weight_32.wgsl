// weight_32: GGUF's blocks of 32: a word with scale and perhaps minimum, in the 5-bit types one with high bits, quants.

#if Q8_0
fn weight_scale(row: u32, k: u32) -> vec2<f32> {
    return vec2(unpack2x16float(word(row + k / 32u * 9u)).x, 0.0);
}

fn weight_quants(row: u32, k: u32, four: u32) -> vec4<f32> {
    let w = vec4(word(row + k / 32u * 9u + 1u + four)) << vec4(24u, 16u, 8u, 0u);
    return vec4<f32>(bitcast<vec4<i32>>(w) >> vec4(24u));
}

fn weight_quants32(row: u32, k: u32) -> array<vec4<f32>, 8> {
    var q: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) {
        q[i] = weight_quants(row, k, i);
    }
    return q;
}
#else
#if HIGH_BITS
const WORDS = 6u;
const CENTRE = 16.0;
#else
const WORDS = 5u;
const CENTRE = 8.0;
#endif

fn weight_scale(row: u32, k: u32) -> vec2<f32> {
    let v = unpack2x16float(word(row + k / 32u * WORDS));
#if MINIMUM
    return v;
#else
    return vec2(v.x, -CENTRE * v.x);
#endif
}

// Low nibbles of a word of quants, with the fifth bits that `high` has of them from its lowest on.
fn nibbles(quants: u32, high: u32) -> vec4<f32> {
    let low = quants & 0x0f0f0f0fu;
#if HIGH_BITS
    // A bit each seven places further: into four bytes.
    return bytes(low | ((((high & 15u) * 0x00204081u) & 0x01010101u) << 4u));
#else
    return bytes(low);
#endif
}

fn weight_quants(row: u32, k: u32, four: u32) -> vec4<f32> {
    let at = row + k / 32u * WORDS;
    return nibbles(word(at + WORDS - 4u + four % 4u) >> (four / 4u * 4u), word(at + 1u) >> (4u * four));
}

// The quants of a block: each word is loaded once.
fn weight_quants32(row: u32, k: u32) -> array<vec4<f32>, 8> {
    let at = row + k / 32u * WORDS;
    let high = word(at + 1u);
    var q: array<vec4<f32>, 8>;
    for (var i = 0u; i < 4u; i++) {
        let w = word(at + WORDS - 4u + i);
        q[i] = nibbles(w, high >> (4u * i));
        q[i + 4u] = nibbles(w >> 4u, high >> (4u * i + 16u));
    }
    return q;
}
#endif
