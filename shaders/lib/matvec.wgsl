// matvec: what the kernels for few rows of a share: their operands, and 32 elements of a row at a
// time. k is never cut, so this is the first and the last part.
#import lib/matmul_params.wgsl
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> c: array<f32>;
#import lib/product.wgsl
#import lib/four_a.wgsl

// NORM: rows of a are normalised. Elements meet their gain as they are loaded, and their squares are summed beside the
// product, which their inverse root mean square then scales.
#if NORM
@group(0) @binding(4) var<storage, read> gain: array<vec4<f32>>;
fn gain_at(k: u32) -> vec4<f32> {
    return gain[min(k, params.k - 4u) / 4u];
}
fn inverse_rms(squares: f32) -> f32 {
    return 1.0 / sqrt(squares / f32(params.k) + params.eps);
}
#endif
