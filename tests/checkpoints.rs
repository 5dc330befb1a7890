//! Real models in every form they come in: stories260K as a Hugging Face folder and as GGUF files of four dtypes tells the
//! story that its authors say it does.

mod common;

use common::shared::shared;
use danlu::data::{StreamDecoder, Tokenizer};
use danlu::infer::{Generator, Sampling};
use danlu::run::States;
use danlu::store::Checkpoint;
use pollster::block_on;
use std::sync::Arc;

/// The greedy text of the first listing in stories260K.md.
fn story(folder: &std::path::Path) -> String {
    let text = std::fs::read_to_string(folder.join("stories260K.md")).unwrap();
    let listing = text.split("-t 0.0\n").nth(1).unwrap();
    listing.split("\n```").next().unwrap().to_string()
}

/// The greedy text of 256 tokens from the beginning of a text on.
fn tell(mut generator: Generator, tokenizer: &Tokenizer) -> String {
    let prompt = tokenizer.encode_prompt("").unwrap();
    let mut decoder = StreamDecoder::new(tokenizer, &prompt);
    let mut text = String::new();
    let receive = |token| {
        text += &decoder.push(token)?;
        Ok(true)
    };
    block_on(generator.generate(&prompt, 256, &Sampling::greedy(), receive)).unwrap();
    text += &decoder.finish().unwrap();
    text.trim_start().to_string()
}

#[test]
fn stories260k_tells_its_story_in_every_form() {
    let Some(folder) = shared("models/stories260K") else { return };
    let story = story(&folder);
    let gpu = common::gpu();
    let tokenizer = Tokenizer::open(folder.join("derived/hf-f32")).unwrap();
    // Quantised weights are other weights: they begin the same story and tell it on as their values in f32 would.
    for (form, same) in [("hf-f32", 0), ("f32", 0), ("f16", 0), ("q8_0", 290), ("q4_0", 80)] {
        let path = match form {
            "hf-f32" => folder.join("derived").join(form),
            _ => folder.join(format!("derived/stories260K-{form}.gguf")),
        };
        let checkpoint = Checkpoint::open(&path).unwrap();
        let mut loaded = Vec::new();
        let generator = block_on(Generator::load(&gpu, &checkpoint, 300, &mut |l| loaded.push(l))).unwrap();
        let text = tell(generator, &tokenizer);
        assert_eq!((loaded[0].done, loaded[loaded.len() - 1].done), (0, loaded[0].total), "{form}");
        if same == 0 {
            assert_eq!(text, story, "{form}");
            continue;
        }
        assert_eq!(text[..same], story[..same], "{form}");
        let frozen = checkpoint.frozen().unwrap().widened();
        let mut states = States::new(&gpu);
        block_on(checkpoint.stream(&mut states, &frozen, &mut |_| {})).unwrap();
        let wide = block_on(Generator::new(&gpu, checkpoint.model(), Arc::new(frozen), states, 300)).unwrap();
        assert_eq!(text, tell(wide, &tokenizer), "{form}");
    }
}
