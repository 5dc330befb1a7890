// expert_linear_params: what a dispatch of the expert_linear kernels for many slots is told.
struct Params {
    columns: u32, sum: u32, width: u32, // of y and of the sum in this dispatch; elements of a stored row of w
    row_w: u32, expert_w: u32, skip_w: u32, // words of w: row to row, expert to expert, up to the first row
    row_x: u32, skip_x: u32, row_y: u32, skip_y: u32, whole_y: u32, // elements; whole_y: where y's binding starts
    first_row: u32, // of x: the first that is bound
    slots: u32, first_slot: u32, end_slot: u32, // all of them, and those that are bound
    experts: u32, first_expert: u32, end_expert: u32,
    first: u32, last: u32, // of several dispatches that add up along the sum
}
@group(0) @binding(0) var<uniform> params: Params;
