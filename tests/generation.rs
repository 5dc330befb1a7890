//! Text by text, on the device: decoding over the KV cache gives the logits of the whole, and stops where it should.

mod common;

use common::golden::{Golden, Sources, interpret};
use common::spread::Spread;
use danlu::base::{Array, Rng, TensorType};
use danlu::compile::{First, compile};
use danlu::gpu::Gpu;
use danlu::graph::Graph;
use danlu::infer::{Finish, Generator, Sampling};
use danlu::model::Llama;
use danlu::run::{Executor, States, f32s};
use pollster::block_on;
use std::sync::Arc;

/// Longer than two of the generator's chunks.
const LENGTH: usize = 80;

fn states(gpu: &Gpu, golden: &Golden) -> States {
    let mut states = States::new(gpu);
    for (i, page) in golden.pages.iter().enumerate() {
        block_on(states.buffer(&format!("param.{i}"), 4 * page.len() as u64)).unwrap();
        block_on(states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page))).unwrap();
    }
    states
}

/// Random weights, and no token that ends a text.
fn open(name: &str) -> Golden {
    let mut golden = Golden::open(name);
    golden.config.eos_token_ids.clear();
    golden
}

fn generator(gpu: &Gpu, golden: &Golden, context: usize) -> Generator {
    let llama = Llama::new(golden.config.clone());
    block_on(Generator::new(gpu, &llama, Arc::new(golden.layout.clone()), states(gpu, golden), context)).unwrap()
}

/// The graph of all logits of `LENGTH` tokens.
fn whole(golden: &Golden) -> Graph {
    let mut g = Graph::new();
    let params = golden.layout.declare(&mut g).unwrap();
    let tokens = g.input("tokens", TensorType::u32([1, LENGTH]));
    let logits = Llama::new(golden.config.clone()).logits(&mut g, &params, tokens).unwrap();
    g.output("logits", logits);
    g
}

fn logits_of_the_whole(gpu: &Gpu, golden: &Golden, graph: &Graph, tokens: &[u32]) -> Vec<f32> {
    let plan = compile(graph, gpu.limits(), &mut First).unwrap();
    let mut run = block_on(Executor::new(gpu, &plan, &mut states(gpu, golden))).unwrap();
    run.set("tokens", tokens).unwrap();
    f32s(&block_on(run.run()).unwrap(), "logits")
}

fn random_tokens(golden: &Golden, count: usize) -> Vec<u32> {
    let mut rng = Rng::new(3, 0);
    (0..count).map(|_| rng.below(golden.config.vocab_size) as u32).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn the_cache_gives_the_logits_of_the_whole() {
    let gpu = common::gpu();
    for name in ["gqa", "tied"] {
        let golden = open(name);
        let (tokens, v) = (random_tokens(&golden, LENGTH), golden.config.vocab_size);
        let graph = whole(&golden);
        let ids = tokens.iter().map(|&t| f64::from(t)).collect();
        let mut sources: Sources = golden.states();
        sources.insert("tokens".into(), Array::new(TensorType::u32([1, LENGTH]), ids));
        let mut spread = Spread::new(|noise| interpret(&graph, &sources, noise));
        let exact = spread.exact["logits"].clone();
        let full = logits_of_the_whole(&gpu, &golden, &graph, &tokens);
        spread.check("logits", &wide(&full), &exact, 0.0);

        // Twice, the second time over the caches that the first left full.
        let mut generator = generator(&gpu, &golden, LENGTH);
        for pieces in [vec![1, 4, 1, 33, 31, 7, 3], vec![70, 10]] {
            assert_eq!(pieces.iter().sum::<usize>(), LENGTH);
            generator.reset();
            let mut at = 0;
            for piece in pieces {
                let logits = block_on(generator.feed(&tokens[at..at + piece])).unwrap();
                at += piece;
                let first = (at - 1) * v;
                spread.check_from("logits", first, &wide(&logits), &exact[first..first + v], 0.0);
            }
        }
        println!("{name}: worst {:.3} of its bar, {}", spread.worst.0, spread.worst.1);
    }
}

#[test]
fn greedy_text_is_the_likeliest_of_the_whole() {
    let gpu = common::gpu();
    for name in ["gqa", "tied"] {
        let golden = open(name);
        let (prompt, v) = (random_tokens(&golden, 37), golden.config.vocab_size);
        let mut text = prompt.clone();
        let receive = |token| {
            text.push(token);
            Ok(true)
        };
        let mut generator = generator(&gpu, &golden, LENGTH);
        let finish =
            block_on(generator.generate(&prompt, LENGTH - prompt.len(), &Sampling::greedy(), receive)).unwrap();
        assert_eq!((finish, text.len()), (Finish::Length, LENGTH));
        let logits = logits_of_the_whole(&gpu, &golden, &whole(&golden), &text);
        for at in prompt.len()..LENGTH {
            let row = &logits[(at - 1) * v..at * v];
            let likeliest = (0..v).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            assert_eq!(text[at] as usize, likeliest, "{name}, token {at}");
        }
    }
}

#[test]
fn a_full_context_ends_a_text_and_refuses_more() {
    let gpu = common::gpu();
    let golden = open("gqa");
    let mut generator = generator(&gpu, &golden, 16);
    assert_eq!(generator.context(), 16);
    let tokens = random_tokens(&golden, 17);
    let count = |generator: &mut Generator, prompt: usize, wanted: usize| {
        let mut received = 0;
        let receive = |_| {
            received += 1;
            Ok(true)
        };
        generator.reset();
        let finish = block_on(generator.generate(&tokens[..prompt], wanted, &Sampling::greedy(), receive)).unwrap();
        (finish, received)
    };
    // What follows the sixteenth token is still known; what follows that is not.
    assert_eq!(count(&mut generator, 10, 100), (Finish::ContextFull, 7));
    assert_eq!(count(&mut generator, 10, 8), (Finish::ContextFull, 7));
    assert_eq!(count(&mut generator, 10, 7), (Finish::Length, 7));
    assert_eq!(count(&mut generator, 16, 1), (Finish::Length, 1));
    assert_eq!(count(&mut generator, 10, 0), (Finish::Length, 0));

    generator.reset();
    let before = block_on(generator.feed(&tokens[..15])).unwrap();
    let message = block_on(generator.feed(&tokens[15..])).unwrap_err().to_string();
    assert!(message.contains("the text has 17 tokens and the context holds 16; shorten the prompt"), "{message}");
    let after = block_on(generator.feed(&tokens[15..16])).unwrap();
    assert_ne!(before, after, "a refused prompt leaves the text as it was");
    generator.reset();
    assert_eq!(block_on(generator.feed(&tokens[..15])).unwrap(), before);
    assert_eq!(block_on(generator.feed(&tokens[15..16])).unwrap(), after, "the same pieces without the refused one");
    generator.reset();
    let message = block_on(generator.feed(&[])).unwrap_err().to_string();
    assert!(message.contains("the prompt is empty"), "{message}");
    let unknown = golden.config.vocab_size as u32;
    let message = block_on(generator.feed(&[unknown])).unwrap_err().to_string();
    assert_eq!(
        message,
        format!(
            "the text holds token {unknown}, and the model knows {unknown}: tokenizer and model are not of one kind"
        )
    );

    // No more positions than the model was made for.
    let llama = Llama::new(golden.config.clone());
    let states = states(&gpu, &golden);
    let generator = block_on(Generator::new(&gpu, &llama, Arc::new(golden.layout.clone()), states, 1 << 20)).unwrap();
    assert_eq!(generator.context(), golden.config.max_position_embeddings);
}

#[test]
fn a_seed_repeats_a_text_and_the_end_is_kept_to_itself() {
    let gpu = common::gpu();
    let mut golden = open("tied");
    let prompt = random_tokens(&golden, 5);
    let tell = |golden: &Golden, sampling: &Sampling, most: usize| {
        let mut generator = generator(&gpu, golden, 32);
        let mut text = Vec::new();
        let receive = |token| {
            text.push(token);
            Ok(text.len() < most)
        };
        let finish = block_on(generator.generate(&prompt, 20, sampling, receive)).unwrap();
        (finish, text)
    };
    let seed = |seed| Sampling { temperature: 1.0, seed, ..Sampling::default() };
    let first = tell(&golden, &seed(1), 100);
    assert_eq!((first.0, first.1.len()), (Finish::Length, 20));
    assert_eq!(tell(&golden, &seed(1), 100), first);
    assert_ne!(tell(&golden, &seed(2), 100).1, first.1);
    assert_eq!(tell(&golden, &seed(1), 6), (Finish::Stopped, first.1[..6].to_vec()));

    // Whatever came sixth ends the text where it first came.
    golden.config.eos_token_ids = vec![first.1[5]];
    let end = first.1.iter().position(|&t| t == first.1[5]).unwrap();
    assert_eq!(tell(&golden, &seed(1), 100), (Finish::EndOfText, first.1[..end].to_vec()));
    let impossible = Sampling { top_p: 0.0, ..Sampling::default() };
    let mut generator = generator(&gpu, &golden, 32);
    let message = block_on(generator.generate(&prompt, 1, &impossible, |_| Ok(true))).unwrap_err().to_string();
    assert!(message.contains("top-p 0 is not above 0 and at most 1"), "{message}");
}

#[test]
fn a_long_prompt_can_be_given_up_and_taken_up_again() {
    let gpu = common::gpu();
    let mut golden = open("gqa");
    golden.config.max_position_embeddings = 512;
    let mut generator = generator(&gpu, &golden, 512);
    let prompt = random_tokens(&golden, 400);
    let mut runs = 0;
    let two = || {
        runs += 1;
        runs < 3
    };
    assert!(!block_on(generator.read(&prompt, two)).unwrap());
    assert_eq!(generator.text(), &prompt[..256]);
    assert!(block_on(generator.read(&prompt, || true)).unwrap());
    let read = generator.text().len();
    assert!(read < prompt.len() && prompt[..read] == *generator.text());
    let mut tell = |most| {
        let mut text = Vec::new();
        let receive = |token| {
            text.push(token);
            Ok(true)
        };
        block_on(generator.generate(&prompt, most, &Sampling::greedy(), receive)).unwrap();
        (text, generator.fed())
    };
    let (text, fed) = tell(3);
    assert_eq!((text.len(), fed), (3, prompt.len() as u64 + 2), "no token is read twice");
}
