// matmul_params: what every dispatch of a matmul kernel is told. The bindings may be windows into the tensors.
struct Params {
    m: u32, n: u32, k: u32, // sizes that this dispatch covers
    // Of a and c in elements, of b in words:
    row_a: u32, row_b: u32, row_c: u32, // from one stored row to the next
    batch_a: u32, batch_b: u32, batch_c: u32, // from one matrix to the next
    skip_a: u32, skip_b: u32, skip_c: u32, // from the begin of the binding to the first matrix
    whole_a: u32, whole_c: u32, // element of the tensor at which the binding starts: what hooks are told
    first: u32, last: u32, // of several dispatches that add up along k
#if SPLIT
    slice: u32, // of k, for each z: the length of its part of the sum
#endif
#if OWN
    rows: u32, // of c that a workgroup makes
#endif
#if SEEN
    entry: u32, queries: u32, keys: u32, query: u32, // of attention in passes: lib/seen.wgsl
#endif
#if PANELS
    panel_1: u32, panel_2: u32, // columns with which the second and the third panel begin
#endif
#if NORM
    eps: f32, // of the norm of a's rows
#endif
}
@group(0) @binding(0) var<uniform> params: Params;

// Element (r, s) of a matrix as it is stored lies at base + r * step + s.
struct Lines {
    base: u32,
    step: u32,
}

#if PANELS
// The panel that holds a column: panels are blocks of columns, one after the other, each by rows.
fn panel(rows: u32, columns: u32, column: u32) -> Lines {
    let second = column >= params.panel_1;
    let third = column >= params.panel_2;
    let start = select(select(0u, params.panel_1, second), params.panel_2, third);
    let end = select(select(params.panel_1, params.panel_2, second), columns, third);
    return Lines(start * (rows - 1u), end - start);
}
#endif

// The part of k that a workgroup sums: from x on, without y.
fn summed(z: u32) -> vec2<u32> {
#if SPLIT
    return vec2(z * params.slice, min(params.k, (z + 1u) * params.slice));
#else
    return vec2(0u, params.k);
#endif
}

// Of matrix z of a, where columns as stored from this one on are wanted.
fn lines_a(z: u32, column: u32) -> Lines {
#if PANELS_A
#if TA
    return panel(params.k, params.m, column);
#else
    return panel(params.m, params.k, column);
#endif
#else
    return Lines(params.skip_a + z * params.batch_a, params.row_a);
#endif
}

// The same of c.
fn lines_c(z: u32, column: u32) -> Lines {
#if PANELS_C
    var lines = panel(params.m, params.n, column);
    lines.base += z * params.batch_c;
    return lines;
#else
    return Lines(params.skip_c + z * params.batch_c, params.row_c);
#endif
}
