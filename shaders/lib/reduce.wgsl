// Sums and maxima over a workgroup of WORKGROUP lanes (a power of two), as a tree of fixed order: the same bits
// whatever the subgroup size. Every lane must call, and every lane gets the result.
var<workgroup> reduce_scratch: array<f32, WORKGROUP>;

fn reduce_sum(value: f32, lane: u32) -> f32 {
    workgroupBarrier(); // the scratch may still be read for the previous result
    reduce_scratch[lane] = value;
    for (var width = WORKGROUP / 2u; width > 0u; width = width / 2u) {
        workgroupBarrier();
        if lane < width {
            reduce_scratch[lane] += reduce_scratch[lane + width];
        }
    }
    workgroupBarrier();
    return reduce_scratch[0];
}

fn reduce_max(value: f32, lane: u32) -> f32 {
    workgroupBarrier();
    reduce_scratch[lane] = value;
    for (var width = WORKGROUP / 2u; width > 0u; width = width / 2u) {
        workgroupBarrier();
        if lane < width {
            reduce_scratch[lane] = max(reduce_scratch[lane], reduce_scratch[lane + width]);
        }
    }
    workgroupBarrier();
    return reduce_scratch[0];
}
