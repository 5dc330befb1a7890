// matvec: what the kernels for few rows of a share: their operands, and 32 elements of a row at a time.
struct Params { // as in matmul_tile.wgsl; k is never cut, so this is the first and the last part
    m: u32, n: u32, k: u32,
    row_a: u32, row_b: u32, row_c: u32,
    batch_a: u32, batch_b: u32, batch_c: u32,
    skip_a: u32, skip_b: u32, skip_c: u32,
    whole_a: u32, whole_c: u32,
    first: u32, last: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> c: array<f32>;
#import lib/product.wgsl
#import lib/four_a.wgsl
