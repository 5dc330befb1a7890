//! Rows of documents: each document whole and once an epoch, nothing of one seen from another, nothing held out trained on.

use std::collections::HashMap;

use super::super::batch::Batch;
use super::*;
use crate::data::{Corpus, Encoder, LossOn, Tokenizer};

/// A shard of examples with these numbers of tokens in the prompt and in the answer; example i says i at its beginning.
fn shard(sizes: &[(usize, usize)]) -> Arc<Shard> {
    let dir = tempfile::tempdir().unwrap();
    let line = |(i, (prompt, answer)): (usize, &(usize, usize))| {
        let word = |n: usize| "a".repeat(n);
        format!(
            "{{\"prompt\": \"{}{}\", \"completion\": \"{}\"}}\n",
            (b'A' + i as u8) as char,
            word(*prompt - 1),
            word(*answer)
        )
    };
    std::fs::write(dir.path().join("d.jsonl"), sizes.iter().enumerate().map(line).collect::<String>()).unwrap();
    let corpus = Corpus::open(dir.path().join("d.jsonl")).unwrap();
    // Nothing comes twice, so that every byte stays a token; the end of text is one more.
    let tokenizer = Tokenizer::train(["x"].into_iter(), 257).unwrap();
    let encoder = Encoder::new(&tokenizer, &corpus, LossOn::Assistant).unwrap();
    Arc::new(Shard::build(dir.path().join("s"), &corpus, &encoder, &mut |_, _| {}).unwrap())
}

fn rows(sizes: &[(usize, usize)], layout: RowLayout, seq: usize) -> Rows {
    Rows::new(shard(sizes), layout, seq, 3, 0.2).unwrap()
}

fn filled(rows: &Rows, number: u64, val: bool) -> Batch {
    let mut batch = Batch::new(1, rows.seq);
    // What was there before must not matter.
    batch.tokens.fill(77);
    batch.targets.fill(77);
    batch.starts.fill(77);
    if val {
        rows.fill_val(number, batch.row(0)).unwrap();
    } else {
        rows.fill(number, batch.row(0)).unwrap();
    }
    batch
}

/// The documents of a row, each with its targets: those of what fills it up come last, if there are any.
fn documents(batch: &Batch) -> Vec<(Vec<u32>, Vec<u32>)> {
    let mut found: Vec<(Vec<u32>, Vec<u32>)> = Vec::new();
    for (t, &start) in batch.starts.iter().enumerate() {
        if start as usize == t {
            found.push((vec![], vec![]));
        }
        let last = found.last_mut().expect("the first token begins a document");
        last.0.push(batch.tokens[t]);
        last.1.push(batch.targets[t]);
        assert!(start as usize <= t && batch.starts[start as usize] == start);
    }
    found
}

const SIZES: [(usize, usize); 12] =
    [(3, 5), (10, 2), (1, 1), (4, 4), (20, 11), (2, 9), (7, 7), (1, 30), (5, 5), (6, 3), (2, 2), (12, 12)];

#[test]
fn packed_rows_hold_every_document_whole_once_an_epoch() {
    let rows = rows(&SIZES, RowLayout::Packed(Overlong::Truncate), 32);
    let counts = rows.counts;
    assert_eq!((counts.documents, counts.overlong, counts.unanswered), (12, 0, 0));
    let mut orders = Vec::new();
    for epoch in 0..3 {
        let (mut seen, mut order) = (HashMap::new(), Vec::new());
        for number in 0..rows.train {
            for (tokens, targets) in documents(&filled(&rows, epoch * rows.train + number, false)) {
                if targets.iter().all(|&t| t == IGNORE) {
                    assert!(tokens.iter().all(|&t| t == 0));
                    continue;
                }
                // Named by its first byte, from which the sizes follow.
                let (prompt, answer) = SIZES[(tokens[0] - tokens_of('A')) as usize];
                assert_eq!(tokens.len(), prompt + answer, "all but the end of text");
                let counted: Vec<bool> = targets.iter().map(|&t| t != IGNORE).collect();
                let expected: Vec<bool> = (0..tokens.len()).map(|t| t + 1 >= prompt).collect();
                assert_eq!(counted, expected);
                assert_eq!(targets.last(), Some(&0), "the end of text is to be predicted");
                *seen.entry(tokens[0]).or_insert(0) += 1;
                order.push(tokens[0]);
            }
        }
        assert_eq!(seen.len(), 10, "two of twelve are held out");
        assert!(seen.values().all(|&count| count == 1));
        for number in 0..rows.val {
            let held: Vec<u32> = documents(&filled(&rows, number, true)).iter().map(|(tokens, _)| tokens[0]).collect();
            assert!(held.iter().all(|first| !seen.contains_key(first)), "{held:?}");
        }
        orders.push(order);
    }
    assert!(orders[0] != orders[1] || orders[1] != orders[2], "another order in another epoch");
    assert_eq!(filled(&rows, rows.val, true), filled(&rows, 0, true), "held-out rows begin again");
}

/// The id of an ASCII character: bytes follow the end of text.
fn tokens_of(c: char) -> u32 {
    let tokenizer = Tokenizer::train(["x"].into_iter(), 257).unwrap();
    tokenizer.encode(&c.to_string()).unwrap()[0]
}

#[test]
fn padded_rows_hold_one_document() {
    let rows = rows(&SIZES, RowLayout::Padded(Overlong::Truncate), 32);
    assert_eq!((rows.train, rows.val), (10, 2));
    for number in 0..rows.train {
        let batch = filled(&rows, number, false);
        let (prompt, answer) = SIZES[(batch.tokens[0] - tokens_of('A')) as usize];
        assert_eq!(batch.counted(), answer as u64 + 1);
        assert!(batch.tokens[prompt + answer..].iter().all(|&t| t == 0));
    }
}

/// A document longer than a row, by each policy, and one whose answer begins beyond it.
#[test]
fn overlong_documents_are_truncated_dropped_or_split() {
    let sizes = [(3, 30), (40, 2), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2)];
    for (overlong, left_out, units) in [(Overlong::Truncate, 1, 7), (Overlong::Drop, 0, 6), (Overlong::Split, 2, 10)] {
        let rows = rows(&sizes, RowLayout::Padded(overlong), 16);
        assert_eq!((rows.counts.overlong, rows.counts.unanswered), (2, left_out), "{overlong:?}");
        assert_eq!(rows.train + rows.val, units, "{overlong:?}");
        let mut counted = 0;
        for number in 0..rows.train {
            counted += filled(&rows, number, false).counted();
        }
        (0..rows.val).for_each(|number| counted += filled(&rows, number, true).counted());
        // Answers and ends of text: all when split, and as far as a row reaches when truncated.
        let expected = match overlong {
            Overlong::Truncate => 14 + 6 * 3,
            Overlong::Drop => 6 * 3,
            Overlong::Split => 31 + 3 + 6 * 3,
        };
        assert_eq!(counted, expected, "{overlong:?}");
    }
}

#[test]
fn too_little_is_refused_with_a_sentence() {
    let refuse = |sizes: &[(usize, usize)], layout| Rows::new(shard(sizes), layout, 8, 3, 0.2).unwrap_err().to_string();
    assert_eq!(
        refuse(&[(2, 2)], RowLayout::Packed(Overlong::Drop)),
        "there is 1 example, and two are needed: one is held out; give more data"
    );
    assert_eq!(
        refuse(&[(2, 20), (2, 20)], RowLayout::Padded(Overlong::Drop)),
        "of 2 examples 2 were left out, as too long for 8 tokens or without an answer within them, and none is left to \
         train on or to hold out; use a larger --seq or more data"
    );
}

/// Permutations of any size, and another one in another epoch and by another seed.
#[test]
fn permutations_are_permutations_and_differ_by_epoch() {
    for n in [1, 2, 3, 4, 5, 7, 16, 17, 100, 1000, 4097] {
        for epoch in 0..3 {
            let seen: std::collections::HashSet<_> = (0..n).map(|i| permute(i, n, 9, epoch)).collect();
            assert!(seen.len() as u64 == n && seen.iter().all(|&i| i < n), "n {n}, epoch {epoch}");
        }
    }
    let order = |seed, epoch| (0..100).map(|i| permute(i, 100, seed, epoch)).collect::<Vec<_>>();
    assert_ne!(order(1, 0), order(1, 1));
    assert_ne!(order(1, 0), order(2, 0));
    let moved = order(1, 0).iter().enumerate().filter(|&(i, &p)| i as u64 != p).count();
    assert!(moved > 80, "{moved} of 100 moved");
}

/// A better and a worse answer stand in neighbouring rows, whatever the order; what has no answer left takes both out.
#[test]
fn pairs_stay_together() {
    let dir = tempfile::tempdir().unwrap();
    let line = |i: usize| {
        let first = (b'A' + i as u8) as char;
        let prompt = if i == 3 { "p".repeat(200) } else { String::new() };
        format!("{{\"prompt\": \"{first}{prompt}\", \"chosen\": \"y{first}\", \"rejected\": \"n{first}\"}}\n")
    };
    std::fs::write(dir.path().join("d.jsonl"), (0..8).map(line).collect::<String>()).unwrap();
    let corpus = Corpus::open(dir.path().join("d.jsonl")).unwrap();
    let tokenizer = Tokenizer::train(["x"].into_iter(), 257).unwrap();
    let encoder = Encoder::new(&tokenizer, &corpus, LossOn::Assistant).unwrap();
    let shard = Arc::new(Shard::build(dir.path().join("s"), &corpus, &encoder, &mut |_, _| {}).unwrap());
    assert_eq!(shard.documents(), 16);
    let rows = Rows::new(shard, RowLayout::Pairs, 64, 3, 0.2).unwrap();
    assert_eq!((rows.train + rows.val, rows.counts.documents, rows.counts.unanswered), (14, 8, 2));
    // Answers are counted as answers, and pairs as pairs.
    let told = rows.counts.told(RowLayout::Pairs, 64);
    assert_eq!(told[0], "2 of 16 answers are longer than 64 tokens: their ends are cut off (--overlong)");
    assert_eq!(told[1], "of 2 answers nothing is to be predicted within 64 tokens: their pairs are left out");
    assert!(told[2].starts_with("7 of 8 pairs in 14 rows of 64 tokens, which are "), "{told:?}");
    let said = |number: u64, val: bool| {
        let batch = filled(&rows, number, val);
        let ids: Vec<u32> = batch.targets.into_iter().filter(|&t| t != IGNORE).collect();
        tokenizer.decode(&ids).unwrap().trim_end().to_string()
    };
    for (count, val) in [(2 * rows.train, false), (rows.val, true)] {
        for number in (0..count).step_by(2) {
            let [better, worse] = [said(number, val), said(number + 1, val)];
            let (better, worse) = (better.strip_prefix(" y").unwrap(), worse.strip_prefix(" n").unwrap());
            assert!(better == worse && better.len() == 1 && better != "D", "{better}, {worse}");
        }
    }
}

/// Numbers of documents do not begin anew where 32 bits end.
#[test]
fn more_documents_than_there_are_numbers_are_refused() {
    assert!(numbered(u32::MAX as usize).is_ok());
    let error = numbered(u32::MAX as usize + 1).unwrap_err().to_string();
    assert!(error.starts_with("there are more than 4294967295 documents, or parts of them"), "{error}");
}

/// A published set of examples, which is no part of the checkout, fills rows nearly to the last token.
#[test]
fn published_examples_fill_their_rows() {
    let (Some(data), Some(tokenizer)) =
        (crate::shared::shared("instruct/alpaca_en_demo.json"), crate::shared::shared("tokenizers/llama3_1"))
    else {
        return;
    };
    let (dir, corpus) = (tempfile::tempdir().unwrap(), Corpus::open(data).unwrap());
    let tokenizer = Tokenizer::open(tokenizer).unwrap();
    let encoder = Encoder::new(&tokenizer, &corpus, LossOn::Assistant).unwrap();
    let shard = Arc::new(Shard::build(dir.path().join("s"), &corpus, &encoder, &mut |_, _| {}).unwrap());
    let rows = Rows::new(shard, RowLayout::Packed(Overlong::Truncate), 1024, 3, 0.05).unwrap();
    let RowCounts { documents, rows: count, .. } = rows.counts;
    assert_eq!(documents, 999);
    assert!(rows.counts.fill(1024) >= 0.97, "{} full, in {count} rows", rows.counts.fill(1024));
}
