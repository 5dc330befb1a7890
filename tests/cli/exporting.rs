//! Runs and their checkpoints as what is handed on: folders with a model card, GGUF files, adapters; each the same bytes
//! however often and from where it is exported.

use super::{Place, has_adapter, stderr, stdout};
use danlu::store::Tensors;
use std::fs;

/// A file of a folder.
fn bytes(place: &Place, path: &str) -> Vec<u8> {
    fs::read(place.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn export(place: &Place, line: &str) {
    place.danlu(&format!("export {line}")).assert().success();
}

fn refused(place: &Place, line: &str, part: &str) {
    let said = stderr(&place.danlu(&format!("export {line}")).assert().code(1));
    assert!(said.contains(part) && said.trim_end().lines().count() == 1, "{line}: {said}");
}

#[test]
fn a_run_and_its_checkpoints_are_handed_on() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train("--out m --checkpoint-every 1 --keep 9 --quiet").assert().success();
    export(&place, "m whole --licence apache-2.0");
    export(&place, "m/checkpoints/step-3 last --licence apache-2.0");
    export(&place, "m/checkpoints/step-1 first --licence apache-2.0");
    let model = bytes(&place, "m/model.safetensors");
    assert!(bytes(&place, "whole/model.safetensors") == model);
    assert!(bytes(&place, "last/model.safetensors") == model);
    assert!(bytes(&place, "first/model.safetensors") != model);
    for file in ["tokenizer.json", "config.json"] {
        assert!(bytes(&place, &format!("whole/{file}")) == bytes(&place, &format!("last/{file}")), "{file}");
    }
    let card = String::from_utf8(bytes(&place, "whole/README.md")).unwrap();
    let parts = [
        "---\nlicense: apache-2.0\nlibrary_name: transformers\n",
        "# whole\n",
        "`text.txt`, of which 5 % were held out. The hash of its tokens is `",
        "3 of 3 steps of 2 sequences of 16 tokens, 96 tokens with what fills rows up; AdamW, highest learning rate 4e-3",
        "| step | training | held out | perplexity |",
        "## Hardware\n\n",
        "## Recipe\n\n```toml\nconfig = \"tiny.json\"\n",
    ];
    for part in parts {
        assert!(card.contains(part), "{part}: {card}");
    }
    // The same run tells the same story, wherever it is read.
    assert_eq!(card.replace("whole", "last"), String::from_utf8(bytes(&place, "last/README.md")).unwrap());
    assert!(bytes(&place, "first/README.md") != card.as_bytes());
    export(&place, "m m.gguf");
    export(&place, "m/checkpoints/step-3 again.gguf");
    place.danlu("convert m.gguf back").assert().success();
    assert!(bytes(&place, "back/model.safetensors") == model);
    place.danlu("convert again.gguf back2").assert().success();
    assert!(bytes(&place, "back2/model.safetensors") == model);
    // Its tokenizer is the same wherever it lies.
    for (tokenizer, out) in [("m", "by-folder"), ("m.gguf", "by-gguf")] {
        place.train(&format!("--tokenizer {tokenizer} --out {out} --quiet")).assert().success();
    }
    assert!(bytes(&place, "by-folder/model.safetensors") == bytes(&place, "by-gguf/model.safetensors"));
    export(&place, "m q.gguf --dtype f16");
    assert!(bytes(&place, "q.gguf").len() < bytes(&place, "m.gguf").len());

    refused(
        &place,
        "m x --merge",
        "--merge is for runs that trained adapters, and m trained the whole model: leave it out",
    );
    refused(&place, "m whole", "is there already; give another name, or --force to overwrite it");
    refused(&place, "m m --force", "is what is read; write to another place");
    refused(
        &place,
        "text.txt x",
        "is neither a run of danlu train, which holds a recipe.toml, nor one of its checkpoints",
    );
    // A run that has not come to its end has checkpoints only: its tokenizer is made again, of the same data.
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::remove_file(place.path("m").join(file)).unwrap();
    }
    refused(
        &place,
        "m x",
        "holds a run that wrote no model yet; go on with it by danlu train --resume, or name one of its",
    );
    export(&place, "m/checkpoints/step-3 unfinished");
    for file in ["tokenizer.json", "config.json", "model.safetensors"] {
        assert!(bytes(&place, &format!("unfinished/{file}")) == bytes(&place, &format!("whole/{file}")), "{file}");
    }
    place.write("text.txt", "Another text altogether, of which nobody can make the same words. ".repeat(90));
    refused(&place, "m/checkpoints/step-3 x", "no longer what the run began with");
    let shard = place.path("m/checkpoints/step-3/states-00001-of-00001.safetensors");
    let mut damaged = fs::read(&shard).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&shard, damaged).unwrap();
    refused(&place, "m/checkpoints/step-3 x", "is damaged");
    assert!(!place.path("x").exists());
}

/// No card tells of a run that the weights beside it are not of.
#[test]
fn weights_that_the_run_has_left_behind_are_not_handed_on() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train("--schedule constant --checkpoint-every 2 --steps 2 --out m --quiet").assert().success();
    export(&place, "m two");
    let (weights, is) = (bytes(&place, "m/model.safetensors"), bytes(&place, "m/trained.json"));
    place.danlu("train --resume m --steps 4 --tune off --quiet").assert().success();
    export(&place, "m four");
    let card = |of: &str| String::from_utf8(bytes(&place, &format!("{of}/README.md"))).unwrap();
    assert!(card("two").contains("2 of 2 steps") && card("four").contains("4 of 4 steps"));
    // As if the second process had been killed after its last checkpoint.
    place.write("m/model.safetensors", weights);
    place.write("m/trained.json", is);
    let gone_on =
        "holds the model of step 2, and the run has gone on since: name the checkpoint, m/checkpoints/step-4, or";
    refused(&place, "m x", gone_on);
    // A model of another run than its checkpoints, as one that is begun by force and killed leaves it.
    place.train("--seed 5 --checkpoint-every 2 --steps 4 --out n --quiet").assert().success();
    fs::copy(place.path("n/trained.json"), place.path("m/trained.json")).unwrap();
    refused(&place, "m x", "holds the model of another run than its recipe.toml is of: name the checkpoint");
    fs::remove_file(place.path("m/trained.json")).unwrap();
    refused(&place, "m x", "holds a model of which no trained.json says what it is");
    export(&place, "m/checkpoints/step-4 x");
    assert!(bytes(&place, "x/model.safetensors") == bytes(&place, "four/model.safetensors"));
}

#[test]
fn cards_say_which_step_rule_and_ranks() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    // Nothing is learnt at such a rate: the first validation stays the best.
    place.write("r.toml", "lr = 1e-30\neval_every = 2\npatience = 2\nweight_decay = 0.0\n");
    let card = |flags: &str, out: &str| {
        place.train(&format!("{flags} --out {out} --quiet")).assert().success();
        export(&place, &format!("{out} of-{out}"));
        String::from_utf8(bytes(&place, &format!("of-{out}/README.md"))).unwrap()
    };
    let early = card("--recipe r.toml --steps 40 --optimizer muon", "early");
    for part in [
        "2 of 40 steps of 2 sequences of 16 tokens, 64 tokens with what fills rows up; Muon, ",
        " The run went on to step 6, which lowered the loss on what is held out no more.",
        "\n| 2 | ",
    ] {
        assert!(early.contains(part), "{part}: {early}");
    }
    assert!(!early.contains("\n| 4 | "), "what was measured later is not of these weights: {early}");
    let ranks = card("--mesh data=2 --optimizer sgd --checkpoint-every 0", "ranks");
    assert!(ranks.contains("; SGD, ") && ranks.contains("2 ranks (data=2), the first of them on "), "{ranks}");
}

#[test]
fn adapters_are_handed_on_alone_or_as_part_of_the_model() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    place.train("--out m --checkpoint-every 0 --quiet").assert().success();
    let flags =
        "--data text.txt --seq 16 --steps 3 --lora-rank 4 --lr 1e-2 --checkpoint-every 1 --keep 9 --tune off --quiet";
    place.danlu(&format!("finetune --model m {flags} --out a")).assert().success();
    export(&place, "a adapter --licence mit");
    export(&place, "a/checkpoints/step-3 same --licence mit");
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        assert!(bytes(&place, &format!("adapter/{file}")) == bytes(&place, &format!("a/{file}")), "{file}");
        assert!(bytes(&place, &format!("same/{file}")) == bytes(&place, &format!("a/{file}")), "{file}");
    }
    let card = String::from_utf8(bytes(&place, "adapter/README.md")).unwrap();
    for part in [
        "license: mit\nbase_model: \"m\"\nlibrary_name: peft\n",
        "An adapter of m, ",
        " LoRA of rank 4 and alpha 32",
        "weights were held as they came.",
        "## Recipe\n\n```toml\nmodel = \"m\"\n",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    export(&place, "a merged --merge");
    place.danlu("merge --model m --adapter a --out by-merge").assert().success();
    assert!(bytes(&place, "merged/model.safetensors") == bytes(&place, "by-merge/model.safetensors"));
    assert!(String::from_utf8(bytes(&place, "merged/README.md")).unwrap().contains("license: unknown"));
    export(&place, "a a.gguf");
    place.danlu("merge --model m --adapter a --out by-merge.gguf").assert().success();
    assert!(bytes(&place, "a.gguf") == bytes(&place, "by-merge.gguf"));
    refused(&place, "a x --dtype f16", "--dtype and --shard-size are of whole models: add --merge");
    // Once the model is another one, a checkpoint of its adapter fits it no more.
    fs::copy(place.path("merged/model.safetensors"), place.path("m/model.safetensors")).unwrap();
    refused(&place, "a/checkpoints/step-3 x", "m is no longer the model that the run began with");

    let phi = super::TINY.replace("LlamaForCausalLM", "Phi3ForCausalLM").replace("\"llama\"", "\"phi3\"");
    place.write("phi.json", phi.replace("\"vocab_size\"", "\"pad_token_id\": 0, \"vocab_size\""));
    place.train("--config phi.json --out phi --checkpoint-every 0 --quiet").assert().success();
    place.danlu(&format!("finetune --model phi {flags} --out p")).assert().success();
    // Its layers are the family's own, which PEFT finds.
    export(&place, "p x");
    let names = |folder: &str| {
        let tensors = Tensors::open_safetensors(&place.path(folder).join("adapter_model.safetensors")).unwrap();
        tensors.iter().map(|t| t.name.to_string()).collect::<Vec<_>>()
    };
    assert!(
        names("x").iter().any(|name| name.ends_with("layers.0.self_attn.qkv_proj.lora_B.weight")),
        "{:?}",
        names("x")
    );
    assert!(names("x").iter().all(|name| !name.contains("q_proj") && !name.contains(".up_proj")), "{:?}", names("x"));
    export(&place, "p phi-merged --merge");
    let said = |model: &str| {
        let line = format!("generate --model {model} --prompt The --tokens 9 --temperature 0");
        stdout(&place.danlu(&line).assert().success())
    };
    assert_eq!(said("phi --lora x"), said("phi-merged"));
}
