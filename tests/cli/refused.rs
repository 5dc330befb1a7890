//! Bad input: exit code 1, one sentence that says what is wrong, where, and what to do; nothing is left behind. What the
//! parser of flags refuses ends with 2.

use super::{Place, TINY, exists, has_adapter, stderr, stdout};
use assert_cmd::Command;

/// Runs, expects the refusal, and finds every part in its one sentence.
fn refused(mut command: Command, parts: &[&str]) {
    let done = command.assert().code(1);
    let text = stderr(&done);
    let sentences: Vec<&str> = text.lines().filter(|line| !line.starts_with("note ")).collect();
    assert!(sentences.len() == 1 && sentences[0].starts_with("danlu: "), "{text}");
    for part in parts {
        assert!(sentences[0].contains(part), "{part}: {text}");
    }
    assert_eq!(stdout(&done), "");
}

#[test]
fn data() {
    let place = Place::new();
    std::fs::create_dir(place.path("folder")).unwrap();
    let files: [(&str, &[u8], &str); 12] = [
        ("no.jsonl.gz", b"{\"text\": \"a\"}\n", "no.jsonl.gz: is no gzip file, though its name says so"),
        ("no.jsonl.zst", b"{\"text\": \"a\"}\n", "no.jsonl.zst: is no zstd file, though its name says so"),
        ("empty.txt", b"", "is empty; training needs text"),
        ("nul.txt", b"a\0b", "nul.txt:1: is a binary file, not text: a NUL byte at column 2"),
        ("bin.txt", b"a\nb\xff", "bin.txt:2: is not UTF-8 text: byte 0xFF at column 2; convert it first"),
        (
            "field.jsonl",
            b"{\"text\": \"a\"}\n{\"txt\": \"b\"}\n",
            "field.jsonl:2: has the fields txt, which are of no form",
        ),
        ("broken.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"b\n", "broken.jsonl:2: is not JSON: EOF while parsing"),
        ("short.txt", b"short", "text shorter than one sequence: has"),
        ("one.jsonl", b"[1]\n", "one.jsonl:1: is a list and no object with fields"),
        (
            "empty.json",
            b"[{\"instruction\": \"a\", \"output\": \"b\"},\n {\"instruction\": \"a\", \"output\": \"\"}]",
            "empty.json:2: has an empty \"output\"; leave the example out, or fill it in",
        ),
        (
            "mixed.jsonl",
            b"{\"text\": \"a\"}\n{\"instruction\": \"a\", \"output\": \"b\"}\n",
            "mixed.jsonl:2: is in Alpaca form, and the file began in text form; one file has one form",
        ),
        (
            "pairs.jsonl",
            b"{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n",
            "pairs.jsonl: holds preference pairs (chosen and rejected), which `danlu dpo` trains on",
        ),
    ];
    if has_adapter() {
        for (name, content, part) in files {
            place.write(name, content);
            refused(place.train(&format!("--data {name} --out o")), &[part]);
        }
        let one =
            "text.txt: is one document, and packed are whole ones, of which some are held out: part documents by lines";
        refused(place.train("--pack --out o"), &[one, "<|endoftext|>, or leave --pack off"]);
        // What a model on disk makes of it: its template, and a tokenizer that is another one's.
        place.train("--out m --quiet").assert().success();
        place.write("few.json", TINY.replace("300", "270"));
        place.train("--config few.json --out few --quiet").assert().success();
        std::fs::copy(place.path("m/tokenizer.json"), place.path("few/tokenizer.json")).unwrap();
        let turns = |first: &str| {
            format!(
                "{{\"messages\": [{{\"role\": \"{first}\", \"content\": \"a\"}}, {{\"role\": \"assistant\", \"content\": \"b\"}}]}}\n"
            )
        };
        place.write("turns.jsonl", [turns("user"), turns("user"), turns("system")].concat());
        let template = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system here') }}{% endif %}\
                        <{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}";
        place.write("m/chat_template.jinja", template);
        let finetune = |rest: &str| place.danlu(&format!("finetune --seq 16 --steps 1 --tune off --out o {rest}"));
        let said = "turns.jsonl:3: the model's chat template refuses the conversation: No system here";
        refused(finetune("--model m --data turns.jsonl"), &[said]);
        let said = ", and the model's configuration 270: one of the two is another model's";
        refused(finetune("--model few --data text.txt"), &["few/tokenizer.json: has ", said]);
        refused(place.train("--data gone.txt --out o"), &["gone.txt: no such file or folder"]);
        refused(place.train("--data folder --out o"), &["folder: holds no .txt, .md, .jsonl, .json or .parquet file"]);
    }
    assert!(!exists(place.path("o")));
}

#[test]
fn configurations() {
    let place = Place::new();
    let changes = [
        ("\"num_attention_heads\": 2", "\"num_attention_heads\": 3", "\"num_attention_heads\" = 3 does not divide it"),
        (
            "\"num_key_value_heads\": 1",
            "\"num_key_value_heads\": 3",
            "it must divide \"num_attention_heads\" = 2: 1, 2",
        ),
        ("\"hidden_size\": 16", "\"hidden_size\": 0", "\"hidden_size\" is 0; it must be a whole number from 1"),
        ("LlamaForCausalLM", "GPT2LMHeadModel", "this architecture is not known; known: BaiChuanForCausalLM, "),
        ("{", "", "bad.json: is not a JSON object"),
    ];
    for (from, to, part) in changes {
        place.write("bad.json", TINY.replacen(from, to, 1));
        refused(place.train("--config bad.json --out o"), &["bad.json", part]);
        refused(place.danlu("plan --config bad.json"), &["bad.json", part]);
    }
    let binary: [(&str, &[u8], &str); 2] = [
        ("x.gguf", b"GGUF\x03\0\0\0", "is a GGUF file and no config.json"),
        ("bytes.json", b"{\xff}", "is no config.json: it is not UTF-8 text"),
    ];
    for (name, content, part) in binary {
        place.write(name, content);
        refused(place.danlu(&format!("plan --config {name}")), &[name, part]);
    }
    for name in ["story-1n", "gone.json"] {
        refused(place.train(&format!("--config {name}")), &[name, "presets: story-1m, story-4m, smollm2-135m"]);
    }
    if has_adapter() {
        place.write("bad.json", TINY.replace("300", "100"));
        refused(place.train("--config bad.json --out o"), &["a vocabulary of 100", "need 257", "\"vocab_size\""]);
        for (name, part) in [("gone.json", "no such file"), ("text.txt", "is not a tokenizer.json")] {
            refused(place.train(&format!("--tokenizer {name} --out o")), &[name, part]);
        }
    }
    assert!(!exists(place.path("o")));
}

#[test]
fn values() {
    let place = Place::new();
    for (flags, part) in [
        ("--lr nan", "lr is NaN; it must be a number above 0"),
        ("--lr -1", "lr is -1; it must be a number above 0"),
        ("--ema 1", "ema is 1; it must lie from 0 to below 1"),
        ("--steps 0", "steps is 0; it must be at least 1"),
        ("--batch 0", "batch is 0; it must be at least 1"),
        ("--seq 0", "seq is 0; it must be at least 1"),
        ("--seq 99999999999", "seq is 99999999999; it must be at most 16777216"),
    ] {
        refused(place.train(&format!("{flags} --out o")), &[part]);
    }
    refused(place.danlu("plan --batch 16777216 --seq 16777216 --config llama-3-8b"), &["more than can be counted"]);
    for flags in ["--steps -1", "--batch x", "--log-format xml", "--no-such-flag"] {
        let done = place.train(flags).assert().code(2);
        assert!(stderr(&done).starts_with("error: "), "{}", stderr(&done));
    }
    assert!(!exists(place.path("o")));
}

#[test]
fn recipes() {
    let place = Place::new();
    for (text, parts) in [
        (
            "steps = 3\nleraning_rate = 1\n",
            ["line 2, `leraning_rate = 1`", "unknown key `leraning_rate`; did you mean `lr`?"],
        ),
        ("steps = \"x\"\n", ["line 1, `steps = \"x\"`", "invalid type"]),
        ("steps = -1\n", ["line 1, `steps = -1`", "invalid value"]),
        ("lr = \n", ["line 1, `lr =`", "bad.toml: "]),
    ] {
        place.write("bad.toml", text);
        refused(place.danlu("train --recipe bad.toml"), &parts);
    }
    place.write("bad.toml", b"steps = 3\n# \xff\n");
    refused(place.danlu("train --recipe bad.toml"), &["bad.toml: line 2 is not UTF-8 text: byte 0xFF at column 3"]);
    refused(place.danlu("train --recipe gone.toml"), &["cannot read gone.toml: No such file"]);
}

#[test]
#[cfg(target_os = "linux")]
fn adapters() {
    let place = Place::new();
    let none = |line: &str| {
        let mut command = place.danlu(line);
        command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
        for name in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "__EGL_VENDOR_LIBRARY_FILENAMES"] {
            command.env(name, "/none.json");
        }
        command
    };
    let parts = ["no GPU adapter was found", "apt-get install mesa-vulkan-drivers"];
    refused(none("train --out o"), &parts);
    let said = stdout(&none("doctor").assert().code(1));
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    if has_adapter() {
        refused(place.train("--adapter geforce-zzz --out o"), &["no adapter fits name `geforce-zzz`; there are: 0: "]);
        refused(place.train("--adapter 99 --out o"), &["no adapter fits number 99; there are: 0: "]);
    }
    assert!(!exists(place.path("o")));
}

#[test]
fn too_big() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let big = TINY
        .replace("\"hidden_size\": 16", "\"hidden_size\": 8192")
        .replace("\"intermediate_size\": 32", "\"intermediate_size\": 28672")
        .replace("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 80")
        .replace("\"num_attention_heads\": 2", "\"num_attention_heads\": 64");
    place.write("big.json", big);
    // Where the adapter's memory is not known, its driver must refuse, which takes what it takes.
    if pollster::block_on(danlu::gpu::list())[0].limits.memory_bytes.is_some() {
        refused(
            place.train("--config big.json --out o"),
            &[" wants ", " bytes and ", " offers ", "choose a smaller model"],
        );
    }
    refused(place.train("--batch 10000000 --out o"), &[" wants ", " bytes and ", " offers ", "choose a smaller model"]);
    assert!(!exists(place.path("o")) && !exists(place.path("cache")));
}

#[test]
#[cfg(target_os = "linux")]
fn places() {
    let place = Place::new();
    for out in ["text.txt", "text.txt/x", "/proc/x"] {
        refused(
            place.train(&format!("--out {out}")),
            &["cannot write to the output folder", out, "another with --out"],
        );
    }
    // The model that training goes on with would be gone.
    for out in ["m", "m/../m"] {
        std::fs::create_dir_all(place.path("m")).unwrap();
        let line = format!("train --model m --data text.txt --out {out}");
        refused(place.danlu(&line), &[out, "choose another --out"]);
    }
    let mut command = place.train("--out o");
    command.env("DANLU_CACHE", "/proc/none");
    refused(command, &["cannot write to the cache folder /proc/none; set DANLU_CACHE to another"]);
    assert!(!exists(place.path("o")));
}

#[test]
fn models_and_what_is_to_be_evaluated() {
    let place = Place::new();
    let offline = |line: &str| {
        let mut command = place.danlu(line);
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", place.path("hf")).env_remove("HF_HUB_CACHE");
        command
    };
    place.write("a.txt", "text");
    place.write("a.jsonl", "{\"prompt\": 1}\n");
    refused(
        offline("eval --model org/model --text a.txt"),
        &[
            "there is no file or folder org/model here, and from the hub: org/model is not whole in the cache ",
            "it lacks config.json, model.safetensors; nothing may be downloaded: unset HF_HUB_OFFLINE once",
        ],
    );
    refused(
        offline("eval --model gone --text a.txt"),
        &[
            "gone: no such file or folder, and no name on a hub, which is org/model, org/model@revision or org/model:file.gguf",
        ],
    );
    refused(
        offline("inspect org/model.gguf"),
        &["org/model.gguf: there is no such file; a file of a model on a hub is named org/model:file.gguf"],
    );
    // `train` wants less than a model, and looks for no more.
    for (flag, file) in [("--config", "config.json"), ("--tokenizer", "tokenizer.json")] {
        let mut command = place.train(&format!("{flag} org/model --out o"));
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", place.path("hf")).env_remove("HF_HUB_CACHE");
        let lacks = format!("it lacks {file}; nothing may be downloaded: unset HF_HUB_OFFLINE once");
        refused(
            command,
            &["there is no file or folder org/model here, and from the hub: org/model is not whole", &lacks],
        );
    }
    std::fs::create_dir(place.path("pickled")).unwrap();
    place.write("pickled/config.json", TINY);
    place.write("pickled/pytorch_model.bin", "");
    refused(
        offline("inspect pickled"),
        &["pickled: holds neither model.safetensors nor", "pytorch_model.bin is PyTorch's own form, which is not read"],
    );
    refused(offline("eval --model m"), &["nothing to evaluate: give --text FILE for perplexity, or --items FILE"]);
    refused(offline("eval --model m --text a.txt --limit 0"), &["--limit 0 leaves nothing to evaluate"]);
    refused(offline("eval --model m --text gone.txt"), &["cannot read gone.txt: "]);
    place.write("bytes.txt", b"a\nbc\xff");
    refused(
        offline("eval --model m --text bytes.txt"),
        &["bytes.txt: line 2 is not UTF-8 text: byte 0xFF at column 3"],
    );
    // Folders of runs that are no models say what they are.
    std::fs::create_dir(place.path("adapter")).unwrap();
    place.write("adapter/adapter_config.json", "{}");
    refused(
        offline("inspect adapter"),
        &["adapter: is an adapter and no model: name its model", "--lora", "`danlu export --merge`"],
    );
    std::fs::create_dir(place.path("step-4")).unwrap();
    place.write("step-4/manifest.json", "{}");
    refused(
        offline("inspect step-4"),
        &["step-4: is a checkpoint of a run and no model folder: write the model of it with `danlu export`"],
    );
    refused(offline("eval --model m --items a.jsonl"), &["a.jsonl: line 1: has the keys prompt, which is no form"]);
    let mut far = place.danlu("eval --model org/model --text a.txt");
    far.env("HF_ENDPOINT", "hub.example").env("HF_HOME", place.path("hf"));
    refused(far, &["the hub's address \"hub.example\" does not begin with https:// or http://; check HF_ENDPOINT"]);
}
