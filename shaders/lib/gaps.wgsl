// Ranges `gaps` of elements (first element, first after it), which ascend.
// How many of them start before element i: binary search.
fn gaps_before(i: u32) -> u32 {
    var low = 0u;
    var high = arrayLength(&gaps);
    while low < high {
        let middle = (low + high) / 2u;
        if gaps[middle].x < i {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    return low;
}

// True if any of the elements from `first` on, before `end`, lies in a gap: the last that starts before `end` ends after all.
fn meets_gap(first: u32, end: u32) -> bool {
    let count = gaps_before(end);
    return count > 0u && first < gaps[max(count, 1u) - 1u].y;
}

fn in_gap(i: u32) -> bool {
    return meets_gap(i, i + 1u);
}
