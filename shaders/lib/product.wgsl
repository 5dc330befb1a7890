// product: 32 elements of a row of matmul's b against 32 of a row of a.
#import lib/four_b.wgsl

// Elements of a row as they are stored, and what makes numbers of them: scale and offset of the first 16 and the others.
struct Stored {
    quants: array<vec4<f32>, 8>,
    scale: vec4<f32>,
}

// 32 elements of a row from k on, which is a multiple of 32; of dtypes without blocks, quads of four `step` apart.
fn stored(row: u32, k: u32, step: u32, width: u32) -> Stored {
    var s: Stored;
#if BLOCK
    s.quants = weight_quants32(row, k);
#if HALVES
    s.scale = vec4(weight_scale(row, k), weight_scale(row, k + 16u));
#else
    s.scale = weight_scale(row, k).xyxy;
#endif
#else
    for (var i = 0u; i < 8u; i++) {
        s.quants[i] = weight4(row, k + step * i, width);
    }
#endif
    return s;
}

// The sum of 32 products; `totals` are the sums of the first 16 x and of the others.
fn product(s: Stored, x: array<vec4<f32>, 8>, totals: vec2<f32>) -> f32 {
    var low = vec4<f32>();
    var high = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        low = fma(s.quants[i], x[i], low);
        high = fma(s.quants[i + 4u], x[i + 4u], high);
    }
#if BLOCK
#if HALVES
    return dot(s.scale, vec4(sum4(low), totals.x, sum4(high), totals.y));
#else
#if Q8_0
    return s.scale.x * sum4(low + high);
#else
    return fma(s.scale.x, sum4(low + high), s.scale.y * (totals.x + totals.y));
#endif
#endif
#else
    return sum4(low + high);
#endif
}

fn sum4(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}
