// Four elements of a row of matmul's a, which begins at element `base`, with the prologue; zeros beyond the row.
fn four_a(base: u32, k: u32) -> vec4<f32> {
    let at = base + min(k, params.k - 4u);
    let v = a[at / 4u];
    let i = params.whole_a + at;
    let x = vec4(prologue(v.x, i), prologue(v.y, i + 1u), prologue(v.z, i + 2u), prologue(v.w, i + 3u));
    return select(vec4<f32>(), x, k < params.k);
}
