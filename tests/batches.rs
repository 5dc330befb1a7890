//! Texts beside each other, over narrow caches, over what is left of earlier texts, and beyond the context: each is the
//! text that it is alone.

mod common;

use common::golden::{Golden, Sources, interpret};
use common::spread::Spread;
use danlu::base::{Array, DType, Rng, TensorType};
use danlu::gpu::Gpu;
use danlu::graph::Graph;
use danlu::infer::{Finish, Generator, Options, Overflow, Request, Sampling};
use danlu::model::Llama;
use danlu::run::States;
use pollster::block_on;
use std::sync::Arc;

fn open(name: &str) -> Golden {
    let mut golden = Golden::open(name);
    golden.config.eos_token_ids.clear();
    golden
}

fn try_generator(gpu: &Gpu, golden: &Golden, options: impl Into<Options>) -> danlu::error::Result<Generator> {
    let mut states = States::new(gpu);
    for (i, page) in golden.pages.iter().enumerate() {
        block_on(states.buffer(&format!("param.{i}"), 4 * page.len() as u64)).unwrap();
        block_on(states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(page))).unwrap();
    }
    let llama = Llama::new(golden.config.clone());
    block_on(Generator::new(gpu, &llama, Arc::new(golden.layout.clone()), states, options))
}

fn generator(gpu: &Gpu, golden: &Golden, options: impl Into<Options>) -> Generator {
    try_generator(gpu, golden, options).unwrap()
}

fn random_tokens(golden: &Golden, count: usize, stream: u64) -> Vec<u32> {
    let mut rng = Rng::new(7, stream);
    (0..count).map(|_| rng.below(golden.config.vocab_size) as u32).collect()
}

fn sampling(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, top_p: 1.0, seed, ..Sampling::default() }
}

fn request(golden: &Golden, length: usize, count: usize, sampling: Sampling) -> Request {
    Request { prompt: random_tokens(golden, length, length as u64), count, sampling }
}

/// The continuation of one request.
fn alone(generator: &mut Generator, request: &Request) -> (Finish, Vec<u32>) {
    let mut text = Vec::new();
    let receive = |token| {
        text.push(token);
        Ok(true)
    };
    let finish = block_on(generator.generate(&request.prompt, request.count, &request.sampling, receive)).unwrap();
    (finish, text)
}

fn together(generator: &mut Generator, requests: &[Request]) -> Vec<(Result<Finish, String>, Vec<u32>)> {
    let mut texts = vec![Vec::new(); requests.len()];
    let receive = |request: usize, token| {
        texts[request].push(token);
        Ok(true)
    };
    let finishes = block_on(generator.generate_batch(requests, receive)).unwrap();
    finishes.into_iter().map(|finish| finish.map_err(|e| e.to_string())).zip(texts).collect()
}

#[test]
fn a_text_is_the_same_alone_and_in_a_batch() {
    let gpu = common::gpu();
    let golden = open("gqa");
    // Unequal prompts, more requests than places, one that asks for nothing, and two that cannot be met.
    let mut requests: Vec<Request> =
        [(3, 9), (41, 5), (1, 20), (70, 0), (12, 12)].map(|(n, m)| request(&golden, n, m, sampling(n as u64))).to_vec();
    requests.push(request(&golden, 200, 5, sampling(1)));
    requests.push(request(&golden, 2, 5, Sampling { top_p: 2.0, ..sampling(1) }));
    requests.push(request(&golden, 30, 8, Sampling::greedy()));
    let mut one = generator(&gpu, &golden, 128);
    for batch in [2, 3] {
        let mut many = generator(&gpu, &golden, Options { batch, ..128.into() });
        assert_eq!((many.batch(), many.context()), (batch, 128));
        // The second time over what the first left.
        for _ in 0..2 {
            for (i, (request, (finish, text))) in requests.iter().zip(together(&mut many, &requests)).enumerate() {
                match i {
                    5 => assert!(finish.unwrap_err().contains("200 tokens and the context holds 128")),
                    6 => assert!(finish.unwrap_err().contains("top-p 2 is not above 0 and at most 1")),
                    _ => assert_eq!((finish.unwrap(), text), alone(&mut one, request), "batch {batch}, request {i}"),
                }
            }
        }
    }
}

/// A token whose embedding is damaged spoils the texts that hold it and no others, not even those that come after in its place.
#[test]
fn a_text_without_numbers_ends_alone() {
    const BAD: u32 = 7;
    let gpu = common::gpu();
    let whole = open("gqa");
    let mut golden = open("gqa");
    let width = golden.config.hidden_size;
    let tensors = golden.layout.tensors_mut(&mut golden.pages);
    let (_, table) = tensors.into_iter().find(|(spec, _)| spec.name == "model.embed_tokens.weight").unwrap();
    table[BAD as usize * width..][..width].fill(f32::NAN);
    // By the likeliest few tokens, and by the logits of all.
    for sampling in [Sampling::greedy(), sampling(3)] {
        let mut requests: Vec<Request> =
            [(9, 12), (40, 9), (5, 9), (30, 4)].map(|(n, m)| request(&golden, n, m, sampling.clone())).to_vec();
        for request in &mut requests {
            request.prompt.iter_mut().filter(|token| **token == BAD).for_each(|token| *token = 8);
        }
        requests[1].prompt[3] = BAD;
        let mut one = generator(&gpu, &whole, 128);
        let mut many = generator(&gpu, &golden, Options { batch: 2, ..128.into() });
        for (i, (request, (finish, text))) in requests.iter().zip(together(&mut many, &requests)).enumerate() {
            if i == 1 {
                let said = "the model gave no finite logit; its weights may be damaged";
                assert_eq!((finish.unwrap_err().as_str(), text.as_slice()), (said, [].as_slice()));
                continue;
            }
            let expected = alone(&mut one, request);
            assert!(!expected.1.contains(&BAD), "choose another token");
            assert_eq!((finish.unwrap(), text), expected, "request {i}");
        }
    }
}

#[test]
fn what_the_cache_holds_is_not_computed_again() {
    let gpu = common::gpu();
    let golden = open("tied");
    let mut kept = generator(&gpu, &golden, 128);
    let mut first = request(&golden, 50, 6, Sampling::greedy());
    let (_, answer) = alone(&mut kept, &first);
    assert_eq!(kept.fed(), 50 + 5, "the last token is handed out and not fed");
    assert_eq!(kept.text(), [&first.prompt[..], &answer[..5]].concat());
    // The next turn: all of it and more.
    first.prompt.extend(&answer);
    first.prompt.extend([1, 2, 3]);
    let before = kept.fed();
    let turn = alone(&mut kept, &first);
    assert_eq!(kept.fed() - before, 1 + 3 + 5);
    assert_eq!(turn, alone(&mut generator(&gpu, &golden, 128), &first));
    // The same again computes one token of the prompt; another end, what differs.
    let before = kept.fed();
    assert_eq!(alone(&mut kept, &first), turn);
    assert_eq!(kept.fed() - before, 1 + 5);
    first.prompt[40] ^= 1;
    let before = kept.fed();
    assert_eq!(alone(&mut kept, &first), alone(&mut generator(&gpu, &golden, 128), &first));
    assert_eq!(kept.fed() - before, first.prompt.len() as u64 - 40 + 5);
    kept.truncate(10);
    assert_eq!(kept.text(), &first.prompt[..10]);
    kept.reset();
    assert!(kept.text().is_empty());
}

#[test]
fn beyond_the_context_a_text_ends_or_goes_on_with_its_newer_half() {
    let gpu = common::gpu();
    let golden = open("gqa");
    let shift = Options { overflow: Overflow::Shift, ..16.into() };
    let long = request(&golden, 10, 30, Sampling::greedy());
    let mut stopping = generator(&gpu, &golden, 16);
    let (finish, begun) = alone(&mut stopping, &long);
    assert_eq!((finish, begun.len()), (Finish::ContextFull, 7));
    let mut shifting = generator(&gpu, &golden, shift.clone());
    let (finish, text) = alone(&mut shifting, &long);
    assert_eq!((finish, text.len()), (Finish::Length, 30));
    assert_eq!(text[..7], begun, "until it is full nothing differs");
    // When 16 were full: the first, the last seven, and the token that did not fit.
    let all = [&long.prompt[..], &text].concat();
    let kept = Request { prompt: [&all[..1], &all[9..17]].concat(), count: 8, ..long.clone() };
    assert_eq!(alone(&mut generator(&gpu, &golden, 16), &kept).1, text[7..15]);
    // A context smaller than the smallest chunk.
    let small = request(&golden, 5, 2, Sampling::greedy());
    assert_eq!(alone(&mut generator(&gpu, &golden, 6), &small), alone(&mut generator(&gpu, &golden, 16), &small));
    // A prompt that is too long keeps the same.
    let prompt = Request { count: 3, ..request(&golden, 40, 3, Sampling::greedy()) };
    let cut = Request { prompt: [&prompt.prompt[..1], &prompt.prompt[33..]].concat(), ..prompt.clone() };
    assert_eq!(alone(&mut shifting, &prompt), alone(&mut generator(&gpu, &golden, 16), &cut));
}

/// Logits of all tokens over caches of this dtype, by the operators' references, and the deviations that rounding, the
/// caches' among it, gives them.
fn spread(golden: &Golden, dtype: DType, tokens: &[u32], context: usize) -> Spread {
    let mut g = Graph::new();
    let params = golden.layout.declare(&mut g).unwrap();
    let llama = Llama::new(golden.config.clone());
    let ids = g.input("tokens", TensorType::u32([1, tokens.len()]));
    let first = g.input("first", TensorType::u32([1]));
    let caches = llama.caches(&mut g, 1, context, dtype);
    let logits = llama.decode(&mut g, &params, ids, first, None, &caches).unwrap();
    g.output("logits", logits);
    let mut sources: Sources = golden.states();
    sources.insert("tokens".into(), Array::new(g.ty(ids).clone(), tokens.iter().map(|&t| f64::from(t)).collect()));
    sources.insert("first".into(), Array::new(g.ty(first).clone(), vec![0.0]));
    for (i, cache) in caches.iter().enumerate() {
        for (name, value) in [("k", cache.keys), ("v", cache.values)] {
            let ty = g.ty(value).clone();
            let zeros = vec![0.0; ty.shape.elements()];
            sources.insert(format!("cache.{name}.{i}"), Array::new(ty, zeros));
        }
    }
    Spread::new(|noise| interpret(&g, &sources, noise))
}

#[test]
fn narrow_caches_stay_within_what_their_rounding_allows() {
    let gpu = common::gpu();
    for (name, dtype, bits) in [("gqa", DType::F16, 16), ("curve", DType::Q8_0, 9)] {
        let golden = open(name);
        let (tokens, v) = (random_tokens(&golden, 60, 0), golden.config.vocab_size);
        let mut spread = spread(&golden, dtype, &tokens, 128);
        let exact = spread.exact["logits"].clone();
        let mut narrow = generator(&gpu, &golden, Options { cache: dtype, ..128.into() });
        assert_eq!(narrow.cache(), (generator(&gpu, &golden, 128).cache().0 * bits / 32, dtype));
        let (mut at, mut differs) = (0, false);
        let mut wide = generator(&gpu, &golden, 128);
        for piece in [33, 1, 1, 7, 1, 17] {
            let logits = block_on(narrow.feed(&tokens[at..at + piece])).unwrap();
            differs |= logits != block_on(wide.feed(&tokens[at..at + piece])).unwrap();
            at += piece;
            let logits: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
            spread.check_from("logits", (at - 1) * v, &logits, &exact[(at - 1) * v..at * v], 0.0);
        }
        assert!(at == tokens.len() && differs, "{dtype}: a cache that rounds nothing is not narrow");
        println!("{name}, {dtype}: worst {:.3} of its bar, {}", spread.worst.0, spread.worst.1);
    }
    // 2 heads of 8 are half a block.
    let narrow = Options { cache: DType::Q8_0, ..128.into() };
    let message = try_generator(&gpu, &open("gqa"), narrow).err().expect("refused").to_string();
    assert!(
        message.contains("a q8_0 cache needs key heads whose widths sum up to a multiple of 32, not 16"),
        "{message}"
    );
}
