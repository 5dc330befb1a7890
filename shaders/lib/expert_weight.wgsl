// expert_weight: four neighbouring elements of a stored row of an expert's weight, from k on; `row` is the word at which
// the row begins. Beyond the row's end valid neighbours are read. VECTOR_W: f32 rows of whole vectors.
#if VECTOR_W
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;

fn four_w(row: u32, k: u32) -> vec4<f32> {
    return w[(row + min(k, params.width - 4u)) / 4u];
}
#else
@group(0) @binding(2) var<storage, read> w: array<u32>;

fn word(at: u32) -> u32 {
    return w[at];
}
#import lib/weight.wgsl

fn four_w(row: u32, k: u32) -> vec4<f32> {
    return weight4(row, k, params.width);
}
#endif
