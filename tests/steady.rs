//! In the steady state nothing is allocated on the host: once two steps have run, this library's code takes no memory for
//! a step, neither for its batch nor for its launches nor for its results. wgpu and the driver behind it allocate for every
//! submission; what a thread allocates in their code (`gpu::in_driver`) is counted apart.

mod common;

use danlu::compile::First;
use danlu::gpu::in_driver;
use danlu::train::{Event, Recipe, Trainer, prepare};
use pollster::block_on;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Allocations of the thread that asks, while it asks.
struct Counting;

thread_local! {
    static COUNTS: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
}

fn count() {
    let _ = COUNTS.try_with(|counts| {
        if let Some((ours, driver)) = counts.get() {
            counts.set(Some(if in_driver() { (ours, driver + 1) } else { (ours + 1, driver) }));
        }
    });
}

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is allocated while `work` runs: by us, and by the driver.
async fn counted(work: impl Future<Output = ()>) -> (u64, u64) {
    COUNTS.set(Some((0, 0)));
    work.await;
    COUNTS.take().expect("set above")
}

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}"#;

#[test]
fn a_step_allocates_nothing() {
    let gpu = common::gpu();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    std::fs::write(&config, CONFIG).unwrap();
    let config = config.to_str().unwrap().to_string();
    for accumulate in [1, 3] {
        let recipe = Recipe { config: config.clone(), stories: 80, batch: 3, seq: 40, accumulate, ..Recipe::default() };
        allocates_nothing(&gpu, &recipe, folder.path());
    }
}

fn allocates_nothing(gpu: &danlu::gpu::Gpu, recipe: &Recipe, folder: &std::path::Path) {
    let prepared = prepare(recipe, &folder.join("cache"), &mut |_: &Event| {}).unwrap();
    block_on(async {
        let (mut trainer, plan, _) = Trainer::new(gpu, recipe, &prepared, &mut First).await.unwrap();
        // One step is always under way, as in a run. The first pay for what grows to its size once.
        trainer.submit().await.unwrap();
        let mut steps = async |count: u64| {
            for _ in 0..count {
                trainer.submit().await.unwrap();
                assert!(trainer.result().await.unwrap().loss.is_finite());
            }
        };
        let first = counted(steps(3)).await;
        let (ours, driver) = counted(steps(20)).await;
        let dispatches = plan.totals().dispatches;
        eprintln!("{dispatches} dispatches; first steps {first:?}; then {} a step by the driver", driver / 20);
        assert_eq!(ours, 0, "allocations of 20 steps, beside {driver} in the driver's code");
        // The counter counts.
        assert!(counted(async { drop(vec![0u8; 8]) }).await.0 == 1 && driver > 0);
    });
}
