//! Every window once an epoch, the same batch for the same (seed, step), and nothing held out is ever trained on.

use std::collections::HashSet;

use super::*;
use crate::data::{Corpus, Encoder, IGNORE, LossOn, Tokenizer};

const T: usize = 32;

fn shard(stories: u64) -> Arc<Shard> {
    let dir = tempfile::tempdir().unwrap();
    let corpus = Corpus::stories(3, stories);
    let tokenizer = Tokenizer::train(corpus.sample(50_000).unwrap().into_iter(), 400).unwrap();
    let encoder = Encoder::new(&tokenizer, &corpus, LossOn::Assistant).unwrap();
    Arc::new(Shard::build(dir.path().join("s"), &corpus, &encoder, &mut |_, _| {}).unwrap())
}

fn loader(shard: &Arc<Shard>, batch: usize, seed: u64) -> Loader {
    Loader::new(shard.clone(), LoaderOptions { batch, seq: T, seed, ..Default::default() }).unwrap()
}

fn batch(loader: &Loader, step: u64) -> (Vec<u32>, Vec<u32>) {
    let mut batch = loader.empty_batch();
    loader.batch(step, &mut batch).unwrap();
    assert!(batch.starts.iter().all(|&start| start == 0) && batch.counted() == batch.tokens.len() as u64);
    (batch.tokens, batch.targets)
}

#[test]
fn an_epoch_takes_every_window_once_and_nothing_held_out() {
    let shard = shard(60);
    let loader = loader(&shard, 4, 5);
    let (rows, seq) = (loader.rows_per_epoch(), T as u64);
    let mut offsets = HashSet::new();
    for epoch in 0..4 {
        let mut starts: Vec<_> = (0..rows).map(|i| loader.sources[0].window_start(epoch * rows + i)).collect();
        starts.sort_unstable();
        assert!(starts.windows(2).all(|pair| pair[1] == pair[0] + seq), "windows overlap or are missing");
        assert!(starts[rows as usize - 1] + seq < loader.train_tokens(), "reads what is held out");
        offsets.insert(starts[0]);
    }
    assert!(offsets.len() > 1, "windows shift from epoch to epoch");
    assert!(rows * seq + 2 * seq > loader.train_tokens(), "no more than two windows are left out");
}

#[test]
fn targets_are_inputs_one_later() {
    let loader = loader(&shard(60), 4, 5);
    let (inputs, targets) = batch(&loader, 3);
    for (inputs, targets) in inputs.chunks(T).zip(targets.chunks(T)) {
        assert_eq!(inputs[1..], targets[..T - 1]);
    }
}

#[test]
fn a_saved_position_gives_the_same_batches() {
    let shard = shard(60);
    let mut running = loader(&shard, 4, 5);
    let mut batches = [running.empty_batch(), running.empty_batch()];
    for _ in 0..17 {
        running.next_batch(&mut batches[0]).unwrap();
    }
    let saved = serde_json::to_string(&running.state()).unwrap();
    assert_eq!(saved, "{\"step\":17}");
    let mut resumed = loader(&shard, 4, 5);
    resumed.restore(serde_json::from_str(&saved).unwrap());
    for _ in 0..300 {
        running.next_batch(&mut batches[0]).unwrap();
        resumed.next_batch(&mut batches[1]).unwrap();
        assert_eq!(batches[0], batches[1]);
    }
    assert_ne!(batch(&running, 0), batch(&loader(&shard, 4, 6), 0), "another seed, another order");
}

#[test]
fn rows_do_not_depend_on_the_batch_they_are_in() {
    let shard = shard(60);
    let (small, large) = (loader(&shard, 2, 5), loader(&shard, 6, 5));
    let joined: Vec<u32> = (0..3).flat_map(|step| batch(&small, step).0).collect();
    assert_eq!(joined, batch(&large, 0).0);
}

#[test]
fn validation_batches_are_fixed_and_lie_in_the_tail() {
    let shard = shard(200);
    let loader = loader(&shard, 2, 5);
    let mut tail = vec![0; loader.val_tokens() as usize];
    shard.read(loader.train_tokens(), &mut tail).unwrap();
    let share = loader.val_tokens() as f64 / shard.len() as f64;
    assert!((0.045..=0.05).contains(&share), "{share}");
    for count in [1, 3, loader.val_batches()] {
        let mut seen = HashSet::new();
        for index in 0..count {
            let mut batch = loader.empty_batch();
            loader.val_batch(index, count, &mut batch).unwrap();
            for row in batch.tokens.chunks(T) {
                let at = (0..tail.len() - T).step_by(T).find(|&at| tail[at..at + T] == *row).expect("a tail window");
                assert!(seen.insert(at), "window {at} twice");
            }
        }
    }
}

#[test]
fn tiny_texts_are_refused_or_used_to_the_last_window() {
    let shard = shard(1);
    let len = shard.len() as usize;
    let fits = |seq: usize| Loader::new(shard.clone(), LoaderOptions { batch: 3, seq, ..Default::default() });
    let error = fits(len / 2).unwrap_err().to_string();
    let needs = 2 * (len / 2 + 1);
    assert_eq!(
        error,
        format!(
            "text shorter than one sequence: has {len} tokens, needs {needs} (a row of {} to train on and one held out); \
             use a smaller --seq or more text",
            needs / 2
        )
    );
    let seq = len / 2 - 1;
    let loader = fits(seq).unwrap();
    assert_eq!((loader.rows_per_epoch(), loader.val_batches()), (1, 1));
    let mut batch = loader.empty_batch();
    loader.val_batch(0, 1, &mut batch).unwrap();
    assert_eq!(batch.tokens[..seq], batch.tokens[seq..2 * seq], "the one row repeats");
    loader.batch(5, &mut batch).unwrap();
}

#[test]
fn impossible_options_are_refused() {
    let shard = shard(1);
    let refuse = |options| Loader::new(shard.clone(), options).unwrap_err().to_string();
    let default = LoaderOptions::default;
    assert_eq!(
        refuse(LoaderOptions { batch: 0, ..default() }),
        "a step of 1 batches of 0 rows of 256 tokens is empty; all must be at least 1"
    );
    assert_eq!(refuse(LoaderOptions { val_fraction: 1.0, ..default() }), "a held-out share of 1 is not in 0..1");
    assert_eq!(refuse(LoaderOptions { val_fraction: f64::NAN, ..default() }), "a held-out share of NaN is not in 0..1");
}

/// Rows of two sources come in the proportion of their weights, each source's in its own order.
#[test]
fn several_sources_are_mixed_by_weight() {
    let shards = [shard(60), shard(80)];
    let options = LoaderOptions { batch: 4, seq: T, seed: 5, ..Default::default() };
    let source = |i: usize, weight| LoaderSource { shard: shards[i].clone(), layout: RowLayout::Windows, weight };
    let mixed = Loader::mixed(vec![source(0, 3.0), source(1, 1.0)], options.clone()).unwrap();
    let alone = [0, 1].map(|i| Loader::new(shards[i].clone(), options.clone()).unwrap());
    let mut rows = [0, 0];
    for step in 0..250 {
        let (tokens, _) = batch(&mixed, step);
        for row in tokens.chunks(T) {
            let next = [0, 1].map(|i| {
                let number = rows[i];
                batch(&alone[i], number / 4).0[number as usize % 4 * T..][..T].to_vec()
            });
            let from = next.iter().position(|next| next == row).expect("the next row of one of them");
            rows[from] += 1;
        }
    }
    assert_eq!(rows, [750, 250]);
    assert_ne!(mixed.checksum(), alone[0].checksum());
    assert_eq!(mixed.val_tokens(), alone[0].val_tokens() + alone[1].val_tokens());
}

/// Whatever their number, ranks see the rows of one order, in training and in validation.
#[test]
fn parts_of_a_batch_are_the_batch() {
    let shard = shard(60);
    let whole = loader(&shard, 6, 5);
    let mut all = whole.empty_batch();
    for parts in [1, 2, 3, 6] {
        let own: Vec<Loader> = (0..parts).map(|i| whole.share(i, parts)).collect();
        let mut part = own[0].empty_batch();
        assert_eq!((part.rows(), own[0].val_batches()), (6 / parts, whole.val_batches()));
        for step in [0, 3, 200] {
            whole.batch(step, &mut all).unwrap();
            let mut rows = all.tokens.chunks(6 / parts * T);
            for loader in &own {
                loader.batch(step, &mut part).unwrap();
                assert_eq!(Some(&part.tokens[..]), rows.next());
            }
            whole.val_batch(step % 2, 2, &mut all).unwrap();
            let mut rows = all.targets.chunks(6 / parts * T);
            for loader in &own {
                loader.val_batch(step % 2, 2, &mut part).unwrap();
                assert_eq!(Some(&part.targets[..]), rows.next());
            }
        }
    }
}

/// A loader of 300 examples whose answers are of very different lengths.
fn examples(batch: usize, lengths: usize) -> Loader {
    examples_of(LoaderOptions { batch, seq: 128, lengths, ..Default::default() })
}

fn examples_of(options: LoaderOptions) -> Loader {
    let line = |i: usize| {
        let answer =
            ["ab", "abcdefghijklmnopqrst", "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz"][i * i % 7 % 3];
        format!("{{\"prompt\": \"{i:03}\", \"completion\": \"{answer}\"}}\n")
    };
    let shard = shard_of(&(0..300).map(line).collect::<String>());
    let source = LoaderSource { shard, layout: RowLayout::Padded(Default::default()), weight: 1.0 };
    Loader::mixed(vec![source], options).unwrap()
}

/// Examples, a token a byte.
fn shard_of(lines: &str) -> Arc<Shard> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("d.jsonl"), lines).unwrap();
    let corpus = Corpus::open(dir.path().join("d.jsonl")).unwrap();
    let tokenizer = Tokenizer::train(["x"].into_iter(), 257).unwrap();
    let encoder = Encoder::new(&tokenizer, &corpus, LossOn::Assistant).unwrap();
    Arc::new(Shard::build(dir.path().join("s"), &corpus, &encoder, &mut |_, _| {}).unwrap())
}

/// Of several sources, too, rows 2n and 2n + 1 of a batch are the better and the worse answer to one prompt, held out or not; with other
/// examples pairs are not mixed.
#[test]
fn pairs_of_several_sources_stay_together() {
    let pairs = |name: char| {
        let line = |i: usize| format!("{{\"prompt\": \"{name}{i:02}\", \"chosen\": \"yes\", \"rejected\": \"no\"}}\n");
        shard_of(&(0..40).map(line).collect::<String>())
    };
    let source = |shard, layout, weight| LoaderSource { shard, layout, weight };
    let sources =
        [('a', 0.5), ('b', 0.3), ('c', 0.2)].map(|(name, weight)| source(pairs(name), RowLayout::Pairs, weight));
    let options = LoaderOptions { batch: 6, seq: 64, val_fraction: 0.2, lengths: 2, ..Default::default() };
    let loader = Loader::mixed(sources.to_vec(), options.clone()).unwrap();
    let mut batch = loader.empty_batch();
    // The prompt, and how many tokens of the answer are to be predicted.
    let parts = |(tokens, targets): (&[u32], &[u32])| {
        let first = targets.iter().position(|&target| target != IGNORE).unwrap();
        (tokens[..=first].to_vec(), targets.iter().filter(|&&target| target != IGNORE).count())
    };
    let check = |batch: &Batch| {
        let rows: Vec<_> = batch.tokens.chunks(batch.seq).zip(batch.targets.chunks(batch.seq)).map(parts).collect();
        for two in rows.chunks(2) {
            // One answer is longer by a letter.
            assert!(two[0].0 == two[1].0 && two[0].1 == two[1].1 + 1, "{two:?}");
        }
    };
    let mut seen = HashSet::new();
    for step in 0..30 {
        loader.batch(step, &mut batch).unwrap();
        check(&batch);
        seen.extend(loader.rows_of(step).into_iter().map(|(source, _)| source));
    }
    assert_eq!(seen.len(), 3, "all sources");
    for index in 0..4 {
        loader.val_batch(index, 4, &mut batch).unwrap();
        check(&batch);
    }
    let other =
        source(shard_of("{\"prompt\": \"a\", \"completion\": \"b\"}\n"), RowLayout::Padded(Default::default()), 1.0);
    let error = Loader::mixed(vec![sources[0].clone(), other], options).unwrap_err().to_string();
    assert_eq!(error, "preference pairs and other examples do not go into one batch");
}

/// What the rows of some batches predict, sorted, and how many tokens they are.
fn predicted(loader: &Loader, batches: u64, fill: impl Fn(u64, &mut Batch)) -> (Vec<Vec<u32>>, u64) {
    let (mut rows, mut tokens, mut batch) = (Vec::new(), 0, loader.empty_batch());
    for index in 0..batches {
        fill(index, &mut batch);
        tokens += batch.tokens.len() as u64;
        let longest = batch.targets.chunks(batch.seq).filter_map(|row| row.iter().rposition(|&t| t != IGNORE)).max();
        let holds = loader.lengths().iter().find(|&&length| length > longest.unwrap());
        assert_eq!(Some(&batch.seq), holds, "the shortest length that holds the batch");
        for (tokens, targets) in batch.tokens.chunks(batch.seq).zip(batch.targets.chunks(batch.seq)) {
            let end = targets.iter().rposition(|&t| t != IGNORE).unwrap() + 1;
            rows.push([&tokens[..end], &targets[..end]].concat());
        }
    }
    rows.sort();
    (rows, tokens)
}

#[test]
fn shorter_rows_hold_the_same_and_cost_less() {
    for batch in [1, 4] {
        let (plain, short) = (examples(batch, 1), examples(batch, 4));
        assert_eq!(plain.lengths(), [128]);
        assert!(short.lengths().len() == 3 && short.longest() < 128, "{:?}", short.lengths());
        let count = short.batches_per_epoch();
        assert!(count * batch as u64 >= short.rows_per_epoch());
        let (all, tokens) = predicted(&plain.filled_up(), count, |step, batch| plain.batch(step, batch).unwrap());
        let (same, fewer) = predicted(&short, count, |step, batch| short.batch(step, batch).unwrap());
        assert!(all == same, "the same rows, each as often");
        assert!(3 * fewer < tokens, "{fewer} of {tokens}");
        let (all, _) = predicted(&plain, 3, |index, batch| plain.val_batch(index, 3, batch).unwrap());
        assert!(all == predicted(&short, 3, |index, batch| short.val_batch(index, 3, batch).unwrap()).0);
        let told = short.told().unwrap();
        assert!(
            told.starts_with("rows are filled up to 16, ") && told.contains(" % fewer are computed than with 128"),
            "{told}"
        );
        assert_eq!(plain.told(), None);
        // What is dumped for others has one length.
        let mut whole = short.filled_up().empty_batch();
        short.filled_up().batch(0, &mut whole).unwrap();
        assert_eq!(whole.seq, 128);
        // A position is a step here too.
        let mut resumed = short.clone();
        resumed.restore(LoaderState { step: 70 });
        let (mut next, mut there) = (short.empty_batch(), short.empty_batch());
        resumed.next_batch(&mut next).unwrap();
        short.batch(70, &mut there).unwrap();
        assert_eq!(next, there);
    }
}

/// Which examples a step sees is the same over batches and ranks of any number and for rows of any lengths, so that a run goes on
/// with others: each once an epoch, those of a step alike in length.
#[test]
fn a_step_sees_the_same_examples_however_they_are_shared_out() {
    let options = LoaderOptions { batch: 12, seq: 128, lengths: 4, ..Default::default() };
    let one = examples_of(options.clone());
    let (epoch, steps) = (one.rows_per_epoch(), one.batches_per_epoch());
    assert_eq!((epoch, steps), (285, 46), "two windows of 23 steps, which are less than an epoch");
    for (batch, accumulate, lengths) in [(12, 1, 1), (6, 2, 4), (3, 4, 4), (1, 12, 1)] {
        let other = examples_of(LoaderOptions { batch, accumulate, lengths, ..options.clone() });
        let each = accumulate as u64;
        assert_eq!(other.batches_per_epoch(), steps * each);
        for step in 0..steps {
            let rows: Vec<_> = (step * each..(step + 1) * each).flat_map(|batch| other.rows_of(batch)).collect();
            assert_eq!(rows, one.rows_of(step), "{accumulate} batches of {batch}, step {step}");
        }
    }
    let mut seen: Vec<u64> = (0..steps / 2).flat_map(|step| one.rows_of(step)).map(|(_, row)| row).collect();
    seen.sort_unstable();
    assert!(seen.iter().copied().eq(0..12 * steps / 2), "every row of a window once");
    let spread = |step| {
        let used = || one.rows_of(step).into_iter().map(|(_, row)| one.sources[0].used(row));
        used().max().unwrap() - used().min().unwrap()
    };
    // Of three lengths, two steps of a window have neighbours of two.
    assert!((0..steps / 2).filter(|&step| spread(step) > 0).count() <= 2);
    // As ranks fill their parts of a batch.
    let (ranks, mut whole) = (one.filled_up(), one.filled_up().empty_batch());
    for step in [0, 7, 40] {
        ranks.batch(step, &mut whole).unwrap();
        let mut alone = one.empty_batch();
        one.batch(step, &mut alone).unwrap();
        let short =
            |batch: &Batch| batch.tokens.chunks(batch.seq).map(|row| row[..alone.seq].to_vec()).collect::<Vec<_>>();
        assert!(whole.seq == 128 && alone.seq < 128 && short(&whole) == short(&alone), "step {step}");
        for part in 0..3 {
            let mut own = ranks.share(part, 3).empty_batch();
            ranks.share(part, 3).batch(step, &mut own).unwrap();
            assert_eq!(own.tokens, whole.tokens[part * 4 * 128..(part + 1) * 4 * 128]);
        }
    }
}
