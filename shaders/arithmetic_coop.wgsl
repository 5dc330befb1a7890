// arithmetic_coop: STEPS rounds of multiply-adds of cooperative matrices of SIZE x SIZE, f16 with sums in f32, all in registers,
// to measure the device's peak. Each subgroup of SUBGROUP lanes has two sums, or, MANY, eight; none waits for another.
enable f16;
enable wgpu_cooperative_matrix;
@group(0) @binding(0) var<storage, read_write> y: array<f32>;

#if SIZE_16
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;
#else
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sum = coop_mat8x8<f32, C>;
#endif

const LANES = GROUPS * SUBGROUP;
const AREA = SIZE * SIZE;
var<workgroup> factors: array<f16, 6u * AREA>;
var<workgroup> out: array<f32, GROUPS * AREA>;

fn left(i: u32) -> Left {
    return coopLoadT<Left>(&factors[i * AREA], SIZE);
}
fn right(i: u32) -> Right {
    return coopLoadT<Right>(&factors[(2u + i) * AREA], SIZE);
}

// What every subgroup has put into `out`, into or onto y.
fn add(group: u32, lane: u32, first: bool) {
    workgroupBarrier();
    for (var e = lane; e < GROUPS * AREA; e += LANES) {
        let at = group * GROUPS * AREA + e;
        y[at] = select(y[at], 0.0, first) + out[e];
    }
    workgroupBarrier();
}

// Factors are so small that sums stay finite. None can be left out, since all are added up in the end.
@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var e = lane; e < 6u * AREA; e += LANES) {
        factors[e] = f16(f32((e + group.x) % 61u) * 0.0001);
    }
    workgroupBarrier();
    let slot = lane / SUBGROUP * AREA;
    let a0 = left(0u);
    let b0 = right(0u);
    let b1 = right(1u);
    var c0 = Sum();
    var c1 = Sum();
#if MANY
    let a1 = left(1u);
    let b2 = right(2u);
    let b3 = right(3u);
    var c2 = Sum();
    var c3 = Sum();
    var c4 = Sum();
    var c5 = Sum();
    var c6 = Sum();
    var c7 = Sum();
#endif
    for (var i = 0u; i < STEPS; i++) {
        c0 = coopMultiplyAdd(a0, b0, c0);
        c1 = coopMultiplyAdd(a0, b1, c1);
#if MANY
        c2 = coopMultiplyAdd(a0, b2, c2);
        c3 = coopMultiplyAdd(a0, b3, c3);
        c4 = coopMultiplyAdd(a1, b0, c4);
        c5 = coopMultiplyAdd(a1, b1, c5);
        c6 = coopMultiplyAdd(a1, b2, c6);
        c7 = coopMultiplyAdd(a1, b3, c7);
#endif
    }
    coopStoreT(c0, &out[slot], SIZE);
    add(group.x, lane, true);
    coopStoreT(c1, &out[slot], SIZE);
    add(group.x, lane, false);
#if MANY
    coopStoreT(c2, &out[slot], SIZE);
    add(group.x, lane, false);
    coopStoreT(c3, &out[slot], SIZE);
    add(group.x, lane, false);
    coopStoreT(c4, &out[slot], SIZE);
    add(group.x, lane, false);
    coopStoreT(c5, &out[slot], SIZE);
    add(group.x, lane, false);
    coopStoreT(c6, &out[slot], SIZE);
    add(group.x, lane, false);
    coopStoreT(c7, &out[slot], SIZE);
    add(group.x, lane, false);
#endif
}
