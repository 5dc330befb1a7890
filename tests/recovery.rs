//! What happens to a run when something breaks under it: numbers that are none, a device that is lost, a disk that takes
//! nothing (docs/faults.md). Processes that are killed are in tests/cli/resuming.rs.

mod common;

use common::tiny_run::{self, begin};
use danlu::gpu::Gpu;
use danlu::optim::JUDGE;
use danlu::run::States;
use danlu::train::{Ending, Event, OnDivergence, Prepared, Recipe, Resumption, Trainer, read_metrics, run};
use pollster::block_on;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

fn recipe(folder: &Path) -> Recipe {
    let tiny = tiny_run::recipe(folder, "run");
    let mut recipe = Recipe { steps: 12, seq: 32, eval_every: Some(6), ..tiny };
    recipe.checkpoint.every = Some(3);
    recipe
}

/// Runs a trainer and has `meddle` see every event; what it came to, and the notes.
fn go(
    gpu: &Gpu,
    recipe: &Recipe,
    (prepared, trainer): &mut (Prepared, Trainer),
    meddle: &mut dyn FnMut(&Event),
) -> (danlu::error::Result<Ending>, Vec<String>) {
    let mut notes = Vec::new();
    let mut hear = |event: &Event| {
        if let Event::Note { text } = event {
            notes.push(text.clone());
        }
        // These steps are faster than the disk: a checkpoint is given the time that a real one has.
        if let Event::Step { step, .. } = event {
            let place = recipe.out.join("checkpoints");
            let due = place.join(format!("step-{}", step - 1));
            for _ in 0..500 {
                if step % 3 != 1 || *step == 1 || due.exists() || !place.is_dir() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        meddle(event);
    };
    let ending = block_on(run(gpu, recipe, prepared, trainer, None, &AtomicBool::new(false), &mut hear));
    (ending, notes)
}

/// Makes parameters no numbers.
fn spoil(states: &States) {
    let bytes = block_on(states.read("param.0")).unwrap().len();
    block_on(states.write("param.0", 0, bytemuck::cast_slice(&vec![f32::NAN; bytes / 4]))).unwrap();
}

fn weights(recipe: &Recipe) -> Vec<u8> {
    std::fs::read(recipe.out.join("model.safetensors")).unwrap()
}

fn rates(recipe: &Recipe) -> Vec<(u64, f64)> {
    read_metrics(&recipe.out).unwrap().iter().filter_map(|m| Some((m.step, m.lr?))).collect()
}

#[test]
fn numbers_that_are_none_lead_back_to_the_last_checkpoint() {
    let gpu = common::gpu();
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path());
    let mut made = begin(&gpu, &recipe, folder.path());
    let (states, schedule) = (made.1.states.clone(), danlu::train::schedule(&recipe));
    // The parameters are spoilt once, after step 8, which is under way by then; the last checkpoint is that of step 6.
    let mut spoilt = false;
    let (ending, notes) = go(&gpu, &recipe, &mut made, &mut |event| {
        if matches!(event, Event::Step { step: 7, .. }) && !std::mem::replace(&mut spoilt, true) {
            spoil(&states);
        }
    });
    assert_eq!(ending.unwrap(), Ending::Complete);
    let back = notes.iter().find(|n| n.contains("training diverged; back to the checkpoint of step 6"));
    assert!(back.is_some_and(|n| n.contains("on with 0.5 of the learning rate")), "{notes:?}");
    let expected: Vec<(u64, f64)> =
        (1..=12).map(|n| (n, schedule.rate(n - 1) * if n > 6 { 0.5 } else { 1.0 })).collect();
    assert_eq!(rates(&recipe), expected, "each step once, from the seventh on with half the rate");
    assert_eq!((made.1.progress.rollbacks, made.1.progress.rate_scale), (1, 0.5));
    assert!(weights(&recipe).len() > 1000);

    // One step later the harm is in the checkpoint of step 9 already: the second time the one before is tried.
    let late = Recipe { out: folder.path().join("late"), ..recipe.clone() };
    let mut made = begin(&gpu, &late, folder.path());
    let (states, mut spoilt) = (made.1.states.clone(), false);
    let (ending, notes) = go(&gpu, &late, &mut made, &mut |event| {
        if matches!(event, Event::Step { step: 8, .. }) && !std::mem::replace(&mut spoilt, true) {
            spoil(&states);
        }
    });
    assert_eq!(ending.unwrap(), Ending::Complete, "{notes:?}");
    let back: Vec<&str> =
        notes.iter().filter_map(|n| n.split("the checkpoint of step ").nth(1)?.split(',').next()).collect();
    assert!(back == ["9", "6"] && made.1.progress.rate_scale == 0.25, "{notes:?}");

    // Taken up at step 6, and harmed at once and again: the checkpoint before is tried, and that of step 6 made anew.
    let again = Recipe { out: folder.path().join("again"), steps: 6, ..recipe.clone() };
    go(&gpu, &again, &mut begin(&gpu, &again, folder.path()), &mut |_| ()).0.unwrap();
    let mut resumption = Resumption::find(&again.out, &mut |text| panic!("{text}")).unwrap();
    resumption.recipe.steps = 12;
    let mut made = begin(&gpu, &resumption.recipe, folder.path());
    block_on(resumption.restore(&mut made.1, &made.0)).unwrap();
    let states = made.1.states.clone();
    spoil(&states);
    let (ending, notes) = go(&gpu, &resumption.recipe, &mut made, &mut |event| {
        if matches!(event, Event::Note { text } if text.contains("of step 6, and on with 0.5 ")) {
            spoil(&states);
        }
    });
    assert_eq!(ending.unwrap(), Ending::Complete, "{notes:?}");
    assert_eq!((made.1.progress.rollbacks, made.1.progress.rate_scale), (2, 0.25), "{notes:?}");

    // Where no rate helps, there is an end; and where it is not wanted, at once.
    for (policy, rollbacks, said) in [
        (OnDivergence::Rollback, 4, "No model was written after 4 rollbacks."),
        (OnDivergence::Stop, 0, "No model was written."),
    ] {
        let mut recipe = recipe.clone();
        recipe.recovery.on_divergence = policy;
        recipe.out = folder.path().join(format!("hopeless-{rollbacks}"));
        let mut made = begin(&gpu, &recipe, folder.path());
        let states = made.1.states.clone();
        let (ending, notes) = go(&gpu, &recipe, &mut made, &mut |event| {
            if matches!(event, Event::Step { step: 4, .. }) {
                spoil(&states);
            }
        });
        let error = ending.unwrap_err().to_string();
        assert!(error.contains("training diverged; try a lower --lr") && error.ends_with(said), "{error}");
        assert_eq!(notes.iter().filter(|n| n.contains("back to the checkpoint of step 3")).count(), rollbacks);
        assert!(!recipe.out.join("model.safetensors").exists());
    }
}

/// Outliers in a row lead back as well, to what the mean norm was then.
#[test]
fn outliers_in_a_row_lead_back_to_the_last_checkpoint() {
    let gpu = common::gpu();
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path());
    (recipe.recovery.outlier, recipe.recovery.skipped) = (4.0, 2);
    let mut made = begin(&gpu, &recipe, folder.path());
    let (states, mut once) = (made.1.states.clone(), false);
    let (ending, notes) = go(&gpu, &recipe, &mut made, &mut |event| {
        let Event::Step { step: 7, grad_norm, .. } = event else { return };
        if !std::mem::replace(&mut once, true) {
            // As if fifty steps of a hundredth of this norm had counted.
            let state = [0.0, 0.0, 0.0, 0.5, 0.5, 0.4 * grad_norm, 40.0, 0.0];
            block_on(states.write(JUDGE, 0, bytemuck::cast_slice(&state))).unwrap();
        }
    });
    assert_eq!(ending.unwrap(), Ending::Complete);
    let back: Vec<&String> = notes.iter().filter(|n| n.contains("training diverged")).collect();
    assert!(
        back.len() == 1 && back[0].contains("the last 2 steps, up to step") && back[0].contains("of step 6, and on"),
        "{notes:?}"
    );
    assert_eq!((made.1.progress.rollbacks, made.1.progress.skipped_in_row), (1, 0));
    assert_eq!(rates(&recipe).iter().map(|(step, _)| *step).collect::<Vec<_>>(), (1..=12).collect::<Vec<u64>>());
}

#[test]
fn a_lost_device_costs_no_more_than_the_steps_since_the_last_checkpoint() {
    let gpu = common::gpu();
    let folder = tempfile::tempdir().unwrap();
    let calm = Recipe { out: folder.path().join("calm"), ..recipe(folder.path()) };
    go(&gpu, &calm, &mut begin(&gpu, &calm, folder.path()), &mut |_| ()).0.unwrap();

    let recipe = recipe(folder.path());
    let lost = common::new_gpu();
    let mut made = begin(&lost, &recipe, folder.path());
    let (ending, _) = go(&lost, &recipe, &mut made, &mut |event| {
        if matches!(event, Event::Checkpoint { step: 6, .. }) {
            lost.destroy();
        }
    });
    let error = ending.unwrap_err().to_string();
    let run = recipe.out.display();
    assert!(error.starts_with("device: the device was destroyed"), "{error}");
    assert!(
        error
            .ends_with(&format!("the last checkpoint is that of step 6: `danlu train --resume {run}` goes on from it")),
        "{error}"
    );

    let resumption = Resumption::find(&recipe.out, &mut |text| panic!("{text}")).unwrap();
    assert_eq!(resumption.step(), 6);
    let mut made = begin(&gpu, &resumption.recipe, folder.path());
    block_on(resumption.restore(&mut made.1, &made.0)).unwrap();
    go(&gpu, &resumption.recipe, &mut made, &mut |_| ()).0.unwrap();
    assert!(weights(&recipe) == weights(&calm));
    assert_eq!(rates(&recipe), rates(&calm));
}

#[test]
fn a_disk_that_takes_no_checkpoint_stops_nothing() {
    let gpu = common::gpu();
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path());
    std::fs::create_dir_all(&recipe.out).unwrap();
    // A file where the checkpoints' folder should be; it goes after the second failure.
    let place = recipe.out.join("checkpoints");
    std::fs::write(&place, "").unwrap();
    let mut made = begin(&gpu, &recipe, folder.path());
    let (mut failures, mut saved) = (0, Vec::new());
    let (ending, notes) = go(&gpu, &recipe, &mut made, &mut |event| match event {
        Event::Note { text } if text.starts_with("there is no checkpoint of step ") => {
            failures += 1;
            if failures == 2 {
                std::fs::remove_file(&place).unwrap();
            }
        }
        Event::Checkpoint { step, .. } => saved.push(*step),
        _ => {}
    });
    assert_eq!(ending.unwrap(), Ending::Complete);
    assert!(notes[0].contains("checkpoint of step 3: ") && notes[0].contains("Training goes on"), "{notes:?}");
    assert!(failures == 2 && saved.last() == Some(&12), "{notes:?}, {saved:?}");
}

/// Each checkpoint tells for how long the device worked on nothing else, which is part of the time until it is on disk; the run's
/// metrics have the same.
#[test]
fn what_training_waits_for_at_a_checkpoint_is_told() {
    let gpu = common::gpu();
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe { steps: 6, ..recipe(folder.path()) };
    let mut made = begin(&gpu, &recipe, folder.path());
    let mut told = Vec::new();
    let (ending, notes) = go(&gpu, &recipe, &mut made, &mut |event| {
        if let Event::Checkpoint { step, bytes, stall, seconds, .. } = event {
            assert!(*bytes > 0 && *stall > 0.0 && stall <= seconds, "step {step}: {stall} of {seconds} s");
            told.push((*step, *stall));
        }
    });
    assert_eq!(ending.unwrap(), Ending::Complete, "{notes:?}");
    assert_eq!(told.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [3, 6], "{notes:?}");
    let metrics = read_metrics(&recipe.out).unwrap();
    let kept = metrics.iter().filter_map(|m| Some((m.step, m.checkpoint_stall?)));
    assert_eq!(kept.collect::<Vec<_>>(), told);
}

/// A cache of tokens that somebody cuts short, or deletes, while it is read: no signal ends the process. What is only deleted is
/// still there for who has it open; what is cut short is said, and the run goes on from its checkpoint with tokens made anew.
#[test]
fn tokens_that_are_cut_short_end_a_run_with_a_sentence() {
    let (gpu, folder) = (common::gpu(), tempfile::tempdir().unwrap());
    let shard = || {
        let files = std::fs::read_dir(folder.path().join("cache")).unwrap().map(|f| f.unwrap().path());
        files.filter(|f| f.extension().is_some_and(|e| e == "tokens")).collect::<Vec<_>>()
    };
    let whole = Recipe { out: folder.path().join("whole"), ..recipe(folder.path()) };
    let mut made = begin(&gpu, &whole, folder.path());
    let delete = |event: &Event| {
        if matches!(event, Event::Step { step: 4, .. }) {
            shard().iter().for_each(|file| std::fs::remove_file(file).unwrap());
        }
    };
    go(&gpu, &whole, &mut made, &mut { delete }).0.unwrap();
    assert!(shard().is_empty());

    let broken = recipe(folder.path());
    let mut made = begin(&gpu, &broken, folder.path());
    let cut = |event: &Event| {
        if matches!(event, Event::Step { step: 4, .. }) {
            let file = std::fs::File::options().write(true).open(&shard()[0]).unwrap();
            file.set_len(100).unwrap();
        }
    };
    let error = go(&gpu, &broken, &mut made, &mut { cut }).0.unwrap_err().to_string();
    let parts = [
        "was cut short while it was in use; delete it",
        "the last checkpoint is that of step 3: `danlu train --resume",
    ];
    parts.iter().for_each(|part| assert!(error.contains(part), "{error}"));
    let resumption = Resumption::find(&broken.out, &mut |text| panic!("{text}")).unwrap();
    let mut made = begin(&gpu, &resumption.recipe, folder.path());
    block_on(resumption.restore(&mut made.1, &made.0)).unwrap();
    go(&gpu, &resumption.recipe, &mut made, &mut |_| ()).0.unwrap();
    assert!(weights(&broken) == weights(&whole));
}
