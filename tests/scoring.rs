//! Log-probabilities of given tokens on the device, against the logits of the whole in f64; and what is made of them.

mod common;

use common::golden::{Golden, Numbers, Sources, interpret};
use common::scores::{ids, log_probs};
use common::spread::Spread;
use danlu::base::{Rng, TensorType};
use danlu::gpu::Gpu;
use danlu::graph::Graph;
use danlu::infer::{Passage, Scorer};
use danlu::model::Llama;
use danlu::run::States;
use pollster::block_on;
use std::sync::Arc;

fn scorer(gpu: &Gpu, golden: &Golden, batch_tokens: usize) -> Scorer {
    let mut states = States::new(gpu);
    for (i, page) in golden.pages.iter().enumerate() {
        block_on(states.buffer(&format!("param.{i}"), 4 * page.len() as u64)).unwrap();
        block_on(states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page))).unwrap();
    }
    let llama = Llama::new(golden.config.clone());
    Scorer::new(gpu, &llama, Arc::new(golden.layout.clone()), states, batch_tokens)
}

/// ln p of each token from the second on, in f64, from the logits of the whole; and whether it is the likeliest.
fn from_logits(golden: &Golden, tokens: &[u32]) -> Vec<(f64, bool)> {
    let n = tokens.len() - 1;
    let mut g = Graph::new();
    let params = golden.layout.declare(&mut g).unwrap();
    let input = g.input("tokens", TensorType::u32([1, n]));
    let logits = Llama::new(golden.config.clone()).logits(&mut g, &params, input).unwrap();
    g.output("logits", logits);
    let mut sources: Sources = golden.states();
    sources.insert("tokens".into(), ids(&tokens[..n], TensorType::u32([1, n])));
    let logits = &interpret(&g, &sources, None)["logits"];
    let rows = logits.chunks_exact(golden.config.vocab_size).zip(&tokens[1..]);
    rows.map(|(row, &token)| {
        let largest = row.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = row.iter().map(|x| (x - largest).exp()).sum();
        (row[token as usize] - largest - sum.ln(), row[token as usize] == largest)
    })
    .collect()
}

#[test]
fn scores_are_those_of_the_logits_of_the_whole() {
    let gpu = common::gpu();
    // Two of them turn a text by its length, so that not all may be padded to one.
    for name in ["gqa", "tied", "families/phi3-long", "families/dynamic"] {
        let golden = Golden::open(name);
        let mut rng = Rng::new(5, 0);
        let most = golden.config.max_context();
        // Several lengths, so that some are padded, and one as long as can be.
        let lengths = [2, 17, 9, 40, 5, 33, 13, most + 1].map(|n| n.min(most + 1));
        let mut text = |n: usize| -> Vec<u32> { (0..n).map(|_| rng.below(golden.config.vocab_size) as u32).collect() };
        let passages: Vec<Passage> = lengths
            .iter()
            .enumerate()
            .map(|(i, &n)| Passage { tokens: text(n), from: 1 + (i * 3) % (n - 1) })
            .collect();
        let mut scorers = [40, 1 << 12].map(|batch_tokens| scorer(&gpu, &golden, batch_tokens));
        let runs = scorers.each_mut().map(|scorer| {
            let mut heard = Vec::new();
            let scores = block_on(scorer.score(&passages, &mut |done, of| heard.push((done, of)))).unwrap();
            assert_eq!(heard.last(), Some(&(passages.len(), passages.len())));
            scores
        });
        for (p, passage) in passages.iter().enumerate() {
            let tokens = &passage.tokens;
            let logits = from_logits(&golden, tokens);
            let mut spread =
                Spread::new(|noise| Numbers::from([("log_probs".to_string(), log_probs(&golden, tokens, noise))]));
            let exact = spread.exact["log_probs"].clone();
            for (a, (b, _)) in exact.iter().zip(&logits) {
                assert!((a - b).abs() < 1e-9, "{name}: the scoring graph gives {a}, the logits {b}");
            }
            let first = passage.from - 1;
            for run in &runs {
                let got: Vec<f64> = run[p].iter().map(|s| s.log_prob).collect();
                spread.check_from("log_probs", first, &got, &exact[first..], 0.0);
                assert_eq!(got.len(), tokens.len() - passage.from);
            }
        }
    }
}

#[test]
fn the_likeliest_token_is_known_as_such() {
    let gpu = common::gpu();
    let golden = Golden::open("gqa");
    let mut rng = Rng::new(6, 0);
    let mut tokens: Vec<u32> = (0..20).map(|_| rng.below(golden.config.vocab_size) as u32).collect();
    // Every other token becomes the likeliest after those before it.
    for at in (1..20).step_by(2) {
        let likeliest = (0..golden.config.vocab_size as u32).find(|&token| {
            let text: Vec<u32> = tokens[..at].iter().copied().chain([token]).collect();
            from_logits(&golden, &text)[at - 1].1
        });
        tokens[at] = likeliest.unwrap();
    }
    let expected: Vec<bool> = from_logits(&golden, &tokens).iter().map(|(_, greedy)| *greedy).collect();
    assert!(expected.iter().step_by(2).all(|&g| g) && expected.contains(&false));
    let scores = block_on(scorer(&gpu, &golden, 64).score(&[Passage { tokens, from: 1 }], &mut |_, _| {})).unwrap();
    assert_eq!(scores[0].iter().map(|s| s.greedy).collect::<Vec<_>>(), expected);
}

#[test]
fn what_cannot_be_scored_is_said() {
    let gpu = common::gpu();
    let golden = Golden::open("gqa");
    let most = golden.config.max_position_embeddings;
    let mut scorer = scorer(&gpu, &golden, 64);
    for (tokens, from, expected) in [
        (vec![1; 3], 0, "a text of 3 tokens that is scored from token 0 on cannot be"),
        (vec![1; 3], 3, "a text of 3 tokens that is scored from token 3 on cannot be"),
        (vec![1; most + 2], 1, "before its last token there are at most"),
        (vec![1, 1 << 20], 1, "the text holds token 1048576, and the model knows"),
    ] {
        let message = block_on(scorer.score(&[Passage { tokens, from }], &mut |_, _| {})).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    assert_eq!(block_on(scorer.score(&[], &mut |_, _| {})).unwrap(), Vec::<Vec<_>>::new());
}

/// A vocabulary so large that logits come in several parts, whose statistics are put together again.
#[test]
fn many_rows_over_many_words() {
    let config = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 66000, "hidden_size": 4,
        "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "max_position_embeddings": 256, "tie_word_embeddings": true, "initializer_range": 1.0}"#;
    let config = danlu::model::ModelConfig::parse(config, std::path::Path::new("config.json")).unwrap();
    let layout = danlu::nn::ParamLayout::new(Llama::new(config.clone()).param_specs(), 128 << 20);
    let pages = layout.init(7);
    let golden = Golden { config, layout, pages, numbers: Default::default() };
    let mut rng = Rng::new(8, 0);
    let tokens: Vec<u32> = (0..140).map(|_| rng.below(66_000) as u32).collect();
    let exact = from_logits(&golden, &tokens);
    for (a, (b, _)) in log_probs(&golden, &tokens, None).iter().zip(&exact) {
        assert!((a - b).abs() < 1e-9, "the scoring graph gives {a}, the logits {b}");
    }
    let gpu = common::gpu();
    let scores = block_on(scorer(&gpu, &golden, 64).score(&[Passage { tokens, from: 1 }], &mut |_, _| {})).unwrap();
    // A layer of four channels hardly adds to the error of a sum of 66,000 exponentials: K of the derived bar.
    let bar =
        16.0 * f64::from(f32::EPSILON) * 66_000f64.sqrt() * exact.iter().map(|(l, _)| l.abs()).fold(0.0, f64::max);
    for (got, (expected, _)) in scores[0].iter().zip(&exact) {
        assert!((got.log_prob - expected).abs() < bar, "{} instead of {expected}; the bar is {bar}", got.log_prob);
    }
}
