// cache: four neighbouring elements of the keys `k` and values `v`, whose number is i: f32 or, with F16, f16 or, with
// BYTES, blocks of Q8_0 (base/packed.rs).
#if F16
alias Cell = vec2<u32>;
fn k4(i: u32) -> vec4<f32> { return vec4(unpack2x16float(k[i].x), unpack2x16float(k[i].y)); }
fn v4(i: u32) -> vec4<f32> { return vec4(unpack2x16float(v[i].x), unpack2x16float(v[i].y)); }
#else
#if BYTES
alias Cell = u32;
fn signed_bytes(word: u32) -> vec4<f32> {
    return vec4<f32>(vec4(i32(word << 24u), i32(word << 16u), i32(word << 8u), i32(word)) >> vec4(24u));
}
fn k4(i: u32) -> vec4<f32> {
    let block = i / 8u * 9u;
    return signed_bytes(k[block + 1u + i % 8u]) * unpack2x16float(k[block]).x;
}
fn v4(i: u32) -> vec4<f32> {
    let block = i / 8u * 9u;
    return signed_bytes(v[block + 1u + i % 8u]) * unpack2x16float(v[block]).x;
}
#else
alias Cell = vec4<f32>;
fn k4(i: u32) -> vec4<f32> { return k[i]; }
fn v4(i: u32) -> vec4<f32> { return v[i]; }
#endif
#endif
