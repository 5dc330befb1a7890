//! In the steady state nothing is allocated on the host: once two steps have run, this library's code takes no memory for
//! a step, neither for its batch nor for its launches nor for its results; and none for a token that is decoded. wgpu and the driver behind it allocate for every
//! submission; what a thread allocates in their code (`gpu::in_driver`) is counted apart.

mod common;

use danlu::compile::First;
use danlu::gpu::in_driver;
use danlu::infer::{Finish, Generator, Options, Request, Sampling};
use danlu::model::Llama;
use danlu::nn::ParamLayout;
use danlu::run::States;
use danlu::train::{Event, Precision, Recipe, Trainer, prepare};
use pollster::block_on;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

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
    // Mixed precision also follows its loss scale.
    for (accumulate, precision) in [(1, Precision::F32), (3, Precision::F32), (1, Precision::Mixed)] {
        let config = config.clone();
        let recipe = Recipe { config, stories: 80, batch: 3, seq: 40, accumulate, precision, ..Recipe::default() };
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

/// Tokens that are told before it is counted, and while it is.
const FIRST: usize = 4;
const COUNTED: usize = 20;

#[test]
fn a_token_that_is_decoded_allocates_nothing() {
    let gpu = common::gpu();
    let mut config = danlu::model::ModelConfig::parse(CONFIG, std::path::Path::new("config.json")).unwrap();
    // Fresh weights say anything, and the text is not to end.
    config.eos_token_ids.clear();
    let model = Llama::new(config);
    let layout = Arc::new(ParamLayout::new(model.param_specs(), gpu.limits().max_buffer_bytes));
    // The likeliest alone, some of them, and all, whose logits are changed besides.
    let some = Sampling { top_k: 20, ..Sampling::default() };
    let penalised = Sampling { presence_penalty: 0.5, repetition_penalty: 1.1, ..Sampling::default() };
    let cases =
        [("greedy", Sampling::greedy()), ("some", some), ("all", Sampling::default()), ("penalised", penalised)];
    for batch in [1, 3] {
        let options = Options { batch, ..Options::from(64) };
        let mut states = States::new(&gpu);
        for (i, page) in layout.init(7).iter().enumerate() {
            block_on(states.buffer(&format!("param.{i}"), 4 * page.len() as u64)).unwrap();
            block_on(states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page))).unwrap();
        }
        let mut generator = block_on(Generator::new(&gpu, &model, layout.clone(), states, options)).unwrap();
        for (name, sampling) in &cases {
            generator.reset();
            let request = |b: u32| Request { prompt: vec![5, 6 + b], count: 40, sampling: sampling.clone() };
            let requests: Vec<Request> = (0..batch as u32).map(request).collect();
            let (mut told, mut counts) = (0, None);
            // Beside this, nothing is asked of the caller.
            let receive = |_, _| {
                told += 1;
                if told == FIRST * batch {
                    COUNTS.set(Some((0, 0)));
                } else if told == (FIRST + COUNTED) * batch {
                    counts = COUNTS.take();
                }
                Ok(true)
            };
            let finishes = block_on(generator.generate_batch(&requests, receive)).unwrap();
            assert!(finishes.iter().all(|f| matches!(f, Ok(Finish::Length))), "{finishes:?}");
            let (ours, driver) = counts.expect("enough tokens were told");
            eprintln!("{batch} texts, {name}: {} a token by the driver", driver / COUNTED as u64);
            assert_eq!(
                ours, 0,
                "allocations of {COUNTED} tokens of {batch} texts, {name}; {driver} in the driver's code"
            );
            assert!(driver > 0, "the counter counts");
        }
    }
}
