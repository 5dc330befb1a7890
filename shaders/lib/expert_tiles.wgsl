// expert_tiles: of the slots sorted by expert (`order`, `starts`: expert_order.wgsl), the tiles that a dispatch takes: runs
// of at most so many places whose slots have one expert. Experts first_expert .. end_expert; one beyond them all stands
// for ids that are no expert. WINDOW: only slots first_slot .. end_slot.
struct Tile {
    expert: u32,
    first: u32, // places in `order`
    end: u32,
}

// First place in first .. end whose slot is not below this one: the slots of an expert ascend.
fn lower_place(first: u32, end: u32, slot: u32) -> u32 {
    var low = first;
    var high = end;
    while low < high {
        let middle = (low + high) / 2u;
        if order[middle] < slot {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    return low;
}

// All places of an expert.
fn expert_places(expert: u32) -> Tile {
    let first = starts[expert];
    var end = params.slots;
    if expert < params.experts {
        end = starts[expert + 1u];
    }
#if WINDOW
    return Tile(expert, lower_place(first, end, params.first_slot), lower_place(first, end, params.end_slot));
#else
    return Tile(expert, first, end);
#endif
}

// Tile `number` of the dispatch; an empty one where there are fewer.
fn find_tile(number: u32, rows: u32) -> Tile {
    var left = number;
    for (var expert = params.first_expert; expert < params.end_expert; expert++) {
        let all = expert_places(expert);
        let tiles = (all.end - all.first + rows - 1u) / rows;
        if left < tiles {
            let first = all.first + left * rows;
            return Tile(expert, first, min(first + rows, all.end));
        }
        left -= tiles;
    }
    return Tile(0u, 0u, 0u);
}
