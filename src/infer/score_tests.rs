//! How passages are put together: everything is scored once, and padding is bounded.

use super::*;
use proptest::prelude::*;

fn passages(lengths: &[(usize, usize)]) -> Vec<Passage> {
    lengths.iter().map(|&(n, scored)| Passage { tokens: (0..n as u32).collect(), from: n - scored }).collect()
}

#[test]
fn rows_point_at_the_token_before() {
    let passages = passages(&[(3, 1), (5, 4)]);
    let batches = batches(&passages, 64, 1000, &|_, _| true);
    let sizes = Sizes { batch: 2, time: 16, rows: 64 };
    assert_eq!(batches, [Batch { sizes, passages: vec![1, 0] }]);
    let [tokens, rows, targets] = inputs(&passages, &batches[0]);
    assert_eq!(tokens[..4], [0, 1, 2, 3]);
    assert_eq!((&tokens[16..18], &tokens[18..]), (&[0, 1][..], &[0; 14][..]));
    assert_eq!(rows[..6], [0, 1, 2, 3, 17, 0]);
    assert_eq!(targets[..6], [1, 2, 3, 4, 2, IGNORE]);
}

#[test]
fn a_plan_is_never_longer_than_the_context() {
    let sizes = batches(&passages(&[(101, 100)]), 64, 100, &|_, _| true)[0].sizes;
    assert_eq!(sizes, Sizes { batch: 1, time: 100, rows: 128 });
}

proptest! {
    #[test]
    fn every_passage_is_in_one_batch_that_holds_it(
        lengths in proptest::collection::vec((2usize..300, 1usize..300), 0..60),
        budget in 1usize..2000,
        short in 1usize..300,
    ) {
        let lengths: Vec<(usize, usize)> = lengths.into_iter().map(|(n, s)| (n, s.min(n - 1))).collect();
        let passages = passages(&lengths);
        let batches = batches(&passages, budget, 512, &|a, b| (a <= short) == (b <= short));
        let mut seen: Vec<usize> = batches.iter().flat_map(|b| b.passages.clone()).collect();
        seen.sort();
        prop_assert_eq!(seen, (0..passages.len()).collect::<Vec<_>>());
        for b in &batches {
            let [tokens, rows, targets] = inputs(&passages, b);
            prop_assert_eq!(tokens.len(), b.sizes.batch * b.sizes.time);
            prop_assert!(rows.len() == b.sizes.rows && targets.len() == b.sizes.rows);
            prop_assert!(b.sizes.batch == 1 || b.sizes.batch * b.sizes.time <= budget);
            prop_assert!(b.passages.len() <= b.sizes.batch);
            // What is short is padded to something short.
            prop_assert!(b.passages.iter().all(|&p| (passages[p].tokens.len() - 1 <= short) == (b.sizes.time <= short)));
        }
    }
}
