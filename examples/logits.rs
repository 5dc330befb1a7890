//! The logits that follow a prompt, as JSON: a model folder through the library. What it prints,
//! `scripts/check_hf.py FOLDER --against FILE` compares with PyTorch's.
//!
//!     cargo run --release --example logits -- models/tiny "One day"

use danlu::data::Tokenizer;
use danlu::gpu::{Gpu, Selector};
use danlu::infer::Generator;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().unwrap_or_else(|| "models/tiny".into());
    let prompt = args.next().unwrap_or_else(|| "One day".into());
    pollster::block_on(async {
        let gpu = Gpu::open(&Selector::default()).await?;
        let ids = Tokenizer::open(format!("{folder}/tokenizer.json"))?.encode_prompt(&prompt)?;
        let logits = Generator::open(&gpu, folder.as_ref(), ids.len()).await?.feed(&ids).await?;
        println!("{}", serde_json::json!({ "ids": ids, "logits": logits }));
        Ok(())
    })
}
