// four_b: matmul's b as rows that are read by four elements. PACKED: in blocks or pairs (lib/weight.wgsl), of which WIDE
// are bound and read by eight elements of two bytes, and FOURS_F16 by four in f16; else f32. Rows divide by what is read.
#if FOURS_F16
@group(0) @binding(2) var<storage, read> b: array<vec2<u32>>;
fn weight4(row: u32, k: u32, width: u32) -> vec4<f32> {
    let words = b[(row + min(k, width - 4u) / 2u) / 2u];
    return vec4(unpack2x16float(words.x), unpack2x16float(words.y));
}
#else
#if PACKED
#if WIDE
@group(0) @binding(2) var<storage, read> b: array<vec4<u32>>;
fn word(at: u32) -> u32 {
    return b[at / 4u][at % 4u];
}
#else
@group(0) @binding(2) var<storage, read> b: array<u32>;
fn word(at: u32) -> u32 {
    return b[at];
}
#endif
#import lib/weight.wgsl
#else
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
fn weight4(row: u32, k: u32, width: u32) -> vec4<f32> {
    return b[(row + min(k, width - 4u)) / 4u];
}
#endif
#endif
