// matmul_params: what every dispatch of a matmul kernel is told. The bindings may be windows into the tensors.
struct Params {
    m: u32, n: u32, k: u32, // sizes that this dispatch covers
    row_a: u32, row_b: u32, row_c: u32, // words from one stored row to the next
    batch_a: u32, batch_b: u32, batch_c: u32, // words from one matrix to the next
    skip_a: u32, skip_b: u32, skip_c: u32, // word of the binding at which the first matrix starts
    whole_a: u32, whole_c: u32, // element of the tensor at which the binding starts: what hooks are told
    first: u32, last: u32, // of several dispatches that add up along k
#if NORM
    eps: f32, // of the norm of a's rows
#endif
}
@group(0) @binding(0) var<uniform> params: Params;
