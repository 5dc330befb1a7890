// True if element i lies in one of the ranges `gaps` (first element, first after it), which ascend: binary search for
// the last range that starts at or before i.
fn in_gap(i: u32) -> bool {
    var low = 0u;
    var high = arrayLength(&gaps);
    while low < high {
        let middle = (low + high) / 2u;
        if gaps[middle].x <= i {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    return low > 0u && i < gaps[max(low, 1u) - 1u].y;
}
