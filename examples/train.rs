//! Training from the library: a recipe, a loop of one's own, a model folder, a story.
//!
//!     cargo run --release --example train

use danlu::compile::First;
use danlu::gpu::{Gpu, Selector};
use danlu::infer::{Generator, Sampling};
use danlu::train::{Event, Recipe, Trainer, prepare, save};

fn main() -> anyhow::Result<()> {
    pollster::block_on(train())
}

/// Forty small steps on the embedded stories: enough to see the loss fall and words appear, not for a tale.
async fn train() -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join("danlu-example");
    let recipe = Recipe {
        config: "story-1m".into(),
        stories: 500,
        steps: 40,
        batch: 4,
        seq: 48,
        out: folder.join("model"),
        ..Recipe::default()
    };
    let gpu = Gpu::open(&Selector::Automatic).await?;
    println!("{}", gpu.report().line());

    // A tokenizer trained on the data, the data as tokens, and the model's configuration to match.
    let mut tell = |event: &Event| {
        if let Event::Note { text } = event {
            println!("{text}");
        }
    };
    let mut prepared = prepare(&recipe, &folder, &mut tell)?;
    // Every size of the preset may be changed before the model is made.
    prepared.config.num_hidden_layers = 2;
    let (mut trainer, plan, _) = Trainer::new(&gpu, &recipe, &prepared, &mut First).await?;
    let totals = plan.totals();
    println!(
        "{} parameters; a step is {} kernels in {} bytes",
        trainer.layout().parameters(),
        totals.steps,
        totals.device_bytes()
    );

    for step in 1..=recipe.steps {
        trainer.submit().await?;
        // Taking a result later lets the device work on the next step meanwhile: two may be under way.
        let result = trainer.result().await?;
        if step % 10 == 0 {
            println!("step {step:>3}: loss {:.3}, gradient norm {:.2}", result.loss, result.grad_norm);
        }
    }
    println!("held-out loss {:.3}", trainer.validate(4).await?.0);

    // What `danlu generate --model` and `transformers` open.
    save(&recipe.out, &recipe, &prepared, &trainer.subject, &trainer.pages().await?)?;
    println!("saved to {}\n", recipe.out.display());

    let layout = std::sync::Arc::new(trainer.layout().clone());
    let mut generator = Generator::new(&gpu, &trainer.model, layout, trainer.states.clone(), 64).await?;
    let prompt = prepared.tokenizer.encode_prompt(&recipe.prompt)?;
    let mut tokens = prompt.clone();
    generator
        .generate(&prompt, 40, &Sampling { seed: 1, ..Sampling::default() }, |token| {
            tokens.push(token);
            Ok(true)
        })
        .await?;
    println!("{}", prepared.tokenizer.decode(&tokens)?);
    Ok(())
}
