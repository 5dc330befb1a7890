// four_b: matmul's b as rows that are read by four elements. PACKED: in blocks or pairs (lib/weight.wgsl), else f32, of
// which rows divide by four.
#if PACKED
@group(0) @binding(2) var<storage, read> b: array<u32>;
fn word(at: u32) -> u32 {
    return b[at];
}
#import lib/weight.wgsl
#else
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
fn weight4(row: u32, k: u32, width: u32) -> vec4<f32> {
    return b[(row + min(k, width - 4u)) / 4u];
}
#endif
