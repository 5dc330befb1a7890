// weight_64: NF4, blocks of 64: a word with the scale, an f32, and eight of quants, of each byte the high nibble first.

const WORDS = 9u;
var<private> nf4: array<f32, 16> = array<f32, 16>(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343,
    -0.091050036, 0.0, 0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0);
#if TABLE_IN_OUT
// The importing file says `fn value(quant: u32) -> f32`, from shared memory that it has for something else.
#else
#if SHARED_TABLE
// Where each lane looks up another place, shared memory answers all at once; to be filled by all lanes together.
var<workgroup> nf4_shared: array<f32, 16>;
fn share_table(lane: u32) {
    if lane < 16u {
        nf4_shared[lane] = nf4[lane];
    }
    workgroupBarrier();
}
fn value(quant: u32) -> f32 {
    return nf4_shared[quant];
}
#else
fn value(quant: u32) -> f32 {
    return nf4[quant];
}
#endif
#endif

fn weight_scale(row: u32, k: u32) -> vec2<f32> {
    return vec2(bitcast<f32>(word(row + k / 64u * WORDS)), 0.0);
}

fn code4(w: u32) -> vec4<f32> {
    let q = (vec4(w) >> vec4(4u, 0u, 12u, 8u)) & vec4(15u);
    return vec4(value(q.x), value(q.y), value(q.z), value(q.w));
}

// The quants of four elements, in the lower half.
fn weight_code(row: u32, k: u32, four: u32) -> u32 {
    return word(row + k / 64u * WORDS + 1u + k % 64u / 32u * 4u + four / 2u) >> (four % 2u * 16u);
}

fn weight_quants(row: u32, k: u32, four: u32) -> vec4<f32> {
    return code4(weight_code(row, k, four));
}

// The quants of 32 elements: each word is loaded once.
fn weight_quants32(row: u32, k: u32) -> array<vec4<f32>, 8> {
    let at = row + k / 64u * WORDS + 1u + k % 64u / 32u * 4u;
    var q: array<vec4<f32>, 8>;
    for (var i = 0u; i < 4u; i++) {
        let w = word(at + i);
        q[2u * i] = code4(w);
        q[2u * i + 1u] = code4(w >> 16u);
    }
    return q;
}
