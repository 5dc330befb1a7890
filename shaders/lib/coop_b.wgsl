// coop_b: matmul_coop's b, of which a lane loads four elements of a stored row at a time: f32 or f16 as they are stored (VECTOR_B:
// rows divide by four, and are bound so), else (DECODED) pairs or blocks (lib/weight.wgsl), which become f32.
#if F16
alias OneB = f16;
alias FourB = vec4<f16>;
const OF_WORD = 2u;
#else
alias OneB = f32;
alias FourB = vec4<f32>;
const OF_WORD = 1u;
#endif

#if DECODED
@group(0) @binding(2) var<storage, read> b: array<u32>;
fn word(at: u32) -> u32 {
    return b[at];
}
#import lib/weight.wgsl
#else
#if VECTOR_B
@group(0) @binding(2) var<storage, read> b: array<FourB>;
#else
@group(0) @binding(2) var<storage, read> b: array<OneB>;
#endif
#endif

// What is on its way while the last step is multiplied. A compiler has what is computed of it wait until there; but not what is
// looked up in shared memory, so of NF4 it is the code, and the bits of the scale.
#if NF4
alias LoadedB = vec2<u32>;
fn load4(row: u32, column: u32, width: u32) -> LoadedB {
    let at = min(column, width - 4u);
    return vec2(weight_code(row, at, at % 32u / 4u), bitcast<u32>(weight_scale(row, at).x));
}
fn decoded(v: LoadedB) -> FourB {
    return code4(v.x) * bitcast<f32>(v.y);
}
#else
alias LoadedB = FourB;
fn load4(row: u32, column: u32, width: u32) -> LoadedB {
#if DECODED
    return weight4(row, column, width);
#else
#if VECTOR_B
    return b[(row + min(column, width - 4u)) / 4u];
#else
    let at = row + min(column + vec4(0u, 1u, 2u, 3u), vec4(width - 1u));
    return FourB(b[at.x], b[at.y], b[at.z], b[at.w]);
#endif
#endif
}
fn decoded(v: LoadedB) -> FourB {
    return v;
}
#endif
