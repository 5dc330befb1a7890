// expert_grad_params: what a dispatch of the expert_grad kernels is told.
struct Params {
    rows: u32, columns: u32, // of a matrix in this dispatch
    expert_w: u32, skip_w: u32, // elements of dw: expert to expert, up to the first row
    row_x: u32, skip_x: u32, row_y: u32, skip_y: u32, // elements
    first_row: u32, // of x: the first that is bound
    slots: u32, first_slot: u32, end_slot: u32, // all of them, and those that are bound
    experts: u32, first_expert: u32, end_expert: u32,
    first: u32, // of several dispatches that add up along the slots
}
@group(0) @binding(0) var<uniform> params: Params;
