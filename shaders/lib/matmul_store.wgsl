// matmul_store: where a product's results go, f32 or f16, and what is fused to them as they are stored. `second`: another expression of
// them, whose results go beside. Both are evaluated before either is stored, so that what they read is read once.
#import lib/written.wgsl
@group(0) @binding(3) var<storage, read_write> c: array<Written>;
#if second
@group(0) @binding(4) var<storage, read_write> beside: array<Written>;
#hook second
#endif
#hook epilogue

// A sum, of word `at` of what is bound.
fn store1(at: u32, sum: f32) {
    var v = sum;
    if params.first == 0u {
        v += f32(c[at]);
    }
#if second
    let other = second(v, params.whole_c + at);
#endif
    if params.last != 0u {
        v = epilogue(v, params.whole_c + at);
    }
#if second
    beside[at] = written(other);
#endif
    c[at] = written(v);
}

// Four sums of a row; what is added or fused to those beyond the edges is that of the nearest.
fn store4(lines: Lines, row: u32, column: u32, sums: vec4<f32>) {
    let start = lines.base + min(row, params.m - 1u) * lines.step;
    var v = sums;
    var at: vec4<u32>;
    for (var d = 0u; d < 4u; d++) {
        at[d] = start + min(column + d, params.n - 1u);
    }
    if params.first == 0u {
        v += vec4<f32>(vec4(c[at.x], c[at.y], c[at.z], c[at.w]));
    }
#if second
    var other = v;
#endif
    if params.last != 0u {
        let i = vec4(params.whole_c) + at;
#if second
        other = vec4(second(v.x, i.x), second(v.y, i.y), second(v.z, i.z), second(v.w, i.w));
#endif
        v = vec4(epilogue(v.x, i.x), epilogue(v.y, i.y), epilogue(v.z, i.z), epilogue(v.w, i.w));
    }
    let four = written4(v);
#if second
    let four_beside = written4(other);
#endif
    for (var d = 0u; d < 4u; d++) {
        if row < params.m && column + d < params.n {
            c[at[d]] = four[d];
#if second
            beside[at[d]] = four_beside[d];
#endif
        }
    }
}
