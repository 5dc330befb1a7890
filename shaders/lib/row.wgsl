// row: the row that a lane works on: LANES neighbouring lanes of a workgroup have one, from item to item LANES further on.
struct Row {
    number: u32,
    is_own: bool, // false of lanes beyond the last row, which go along with it, for all must meet
    along: u32,   // the lane's first item
    at: u32,      // where the row's first item lies
}

fn row_of(group: vec3<u32>, groups: vec3<u32>, lane: u32) -> Row {
    let own = (group.y * groups.x + group.x) * (WORKGROUP / LANES) + lane / LANES;
    let row = min(own, params.rows - 1u);
    return Row(row, own < params.rows, lane % LANES, params.skip + row * params.columns);
}
