// Sums and maxima over LANES neighbouring lanes of a workgroup of WORKGROUP (powers of two; all of it where nothing else is
// said), in a fixed order: the same bits whatever the subgroup size. SHUFFLE: so many lanes first add up from lane to lane,
// where no subgroup is smaller (sums only). Every lane must call, and every lane gets the result.
#if LANES
#else
const LANES = WORKGROUP;
#endif
#if SHUFFLE
const NEAR = min(SHUFFLE, LANES);
var<workgroup> reduce_scratch: array<f32, WORKGROUP / NEAR>;

fn reduce_sum(value: f32, lane: u32) -> f32 {
    var sum = value;
    for (var width = NEAR / 2u; width > 0u; width = width / 2u) {
        sum += subgroupShuffleXor(sum, width);
    }
    if LANES == NEAR {
        return sum;
    }
    workgroupBarrier(); // the scratch may still be read for the previous result
    if lane % NEAR == 0u {
        reduce_scratch[lane / NEAR] = sum;
    }
    workgroupBarrier();
    let first = lane / LANES * (LANES / NEAR);
    sum = 0.0;
    for (var i = 0u; i < LANES / NEAR; i++) {
        sum += reduce_scratch[first + i];
    }
    return sum;
}
#else
var<workgroup> reduce_scratch: array<f32, WORKGROUP>;
// So many lanes add up what the others bring, and then every lane what these have: two rounds instead of one for each
// power of two, since it is barriers that take time.
const ADDING = min(LANES, 16u);

fn reduce_sum(value: f32, lane: u32) -> f32 {
    workgroupBarrier(); // the scratch may still be read for the previous result
    reduce_scratch[lane] = value;
    workgroupBarrier();
    let first = lane / LANES * LANES;
    var sum = 0.0;
    if LANES > ADDING {
        if lane % LANES < ADDING {
            for (var i = 0u; i < LANES; i += ADDING) {
                sum += reduce_scratch[lane + i];
            }
            reduce_scratch[lane] = sum;
        }
        workgroupBarrier();
        sum = 0.0;
    }
    for (var i = 0u; i < ADDING; i++) {
        sum += reduce_scratch[first + i];
    }
    return sum;
}

fn reduce_max(value: f32, lane: u32) -> f32 {
    workgroupBarrier();
    reduce_scratch[lane] = value;
    workgroupBarrier();
    let first = lane / LANES * LANES;
    var largest = value;
    if LANES > ADDING {
        if lane % LANES < ADDING {
            for (var i = 0u; i < LANES; i += ADDING) {
                largest = max(largest, reduce_scratch[lane + i]);
            }
            reduce_scratch[lane] = largest;
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < ADDING; i++) {
        largest = max(largest, reduce_scratch[first + i]);
    }
    return largest;
}
#endif
