//! The border between this library and the driver, wgpu included, so that what each does in the steady state can be told
//! apart: tests/steady.rs counts the allocations on this side of it.

use std::cell::Cell;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// True while this thread is in the driver's code. Allocates nothing, so an allocator may ask.
pub fn in_driver() -> bool {
    DEPTH.try_with(Cell::get).unwrap_or(0) > 0
}

/// Calls into the driver: everything that a run of a plan does goes through here.
pub(super) fn driver<T>(call: impl FnOnce() -> T) -> T {
    DEPTH.set(DEPTH.get() + 1);
    let result = call();
    DEPTH.set(DEPTH.get() - 1);
    result
}
