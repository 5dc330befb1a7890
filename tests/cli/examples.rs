//! Training on examples from outside: forms confirmed aloud, rows packed and padded, several sources, taken up to the bit.

use super::{Place, has_adapter, stderr, stdout};
use std::fs;

/// Conversations in two forms, short enough for packing to matter.
fn write_data(place: &Place) {
    let words = ["cat", "dog", "mat", "house", "red", "ran", "sat", "saw"];
    let word = |i: usize| words[i % words.len()];
    let alpaca = |i: usize| {
        let output = (0..1 + i % 3).map(|k| word(i + k)).collect::<Vec<_>>().join(" ");
        format!("{{\"instruction\": \"say {}\", \"input\": \"\", \"output\": \"{output}\"}}", word(i))
    };
    let alpaca: Vec<String> = (0..40).map(alpaca).collect();
    place.write("alpaca.json", format!("[\n{}\n]\n", alpaca.join(",\n")));
    let turns = |i: usize| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{}\"}}, {{\"role\": \"assistant\", \"content\": \"{}\"}}]}}\n",
            word(i),
            word(i + 1)
        )
    };
    place.write("chat.jsonl", (0..30).map(turns).collect::<String>());
}

#[test]
fn packed_conversations_of_two_sources_are_taken_up_to_the_bit() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    write_data(&place);
    let flags = "--data alpaca.json=0.7 --data chat.jsonl=0.3 --pack --seq 32 --steps 9 --checkpoint-every 3 --keep 9";
    let said = stderr(&place.train(&format!("{flags} --out calm")).assert().success());
    for part in [
        "note        alpaca.json: 40 examples in Alpaca form; the tokenizer has no chat template",
        "note        chat.jsonl: 30 examples in messages form",
        "40 documents in ",
        " rows of 32 tokens, which are ",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    place.train(&format!("{flags} --out hurt")).assert().success();
    for step in [6, 9] {
        // One may have been left out, since the one before was still being written.
        let _ = fs::remove_dir_all(place.path(&format!("hurt/checkpoints/step-{step}")));
    }
    fs::remove_file(place.path("hurt/model.safetensors")).unwrap();
    place.danlu("train --resume hurt --tune off").assert().success();
    let weights = |run: &str| fs::read(place.path(run).join("model.safetensors")).unwrap();
    assert!(weights("calm") == weights("hurt"));
    let recipe = fs::read_to_string(place.path("calm/recipe.toml")).unwrap();
    assert!(recipe.contains("pack = true") && recipe.contains("weight = 0.7"), "{recipe}");
}

#[test]
fn examples_alone_in_a_row_are_cut_off_aloud() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    write_data(&place);
    let long = "the red cat saw a dog that sat on the mat of a house far from the red house of the dog";
    let line = |i: usize| {
        let output = if i.is_multiple_of(4) { long } else { "cat" };
        format!("{{\"instruction\": \"say {i}\", \"output\": \"{output}\"}}\n")
    };
    place.write("long.jsonl", (0..40).map(line).collect::<String>());
    for (overlong, done) in [("truncate", "their ends are cut off"), ("drop", "they are left out")] {
        let mut train = place.train(&format!("--data long.jsonl --seq 32 --overlong {overlong} --out {overlong}"));
        let said = stderr(&train.assert().success());
        assert!(said.contains("10 of 40 documents are longer than 32 tokens: ") && said.contains(done), "{said}");
    }
    let all = stderr(&place.train("--data alpaca.json --seq 32 --loss-on all --out all").assert().success());
    assert!(all.contains("data: 40 examples in Alpaca form"), "{all}");
}

/// A tokenizer folder with a template in which answers are seen.
fn write_tokenizer(place: &Place) {
    let tokenizer = danlu::data::Tokenizer::train(["the cat sat on the mat"].into_iter(), 300).unwrap();
    fs::create_dir(place.path("tokenizer")).unwrap();
    for (name, content) in tokenizer.files(64).unwrap() {
        place.write(&format!("tokenizer/{name}"), content);
    }
    let template = "{% for m in messages %}{{ '<' + m.role + '>' + m.content + eos_token }}{% endfor %}\
                    {% if add_generation_prompt %}<assistant>{% endif %}";
    place.write("tokenizer/chat_template.jinja", template);
}

#[test]
fn examples_are_shown_as_the_model_sees_them() {
    let place = Place::new();
    write_data(&place);
    write_tokenizer(&place);
    let line = "data alpaca.json --tokenizer tokenizer --seq 64 --examples 2 --color";
    let plain = stdout(&place.danlu(&format!("{line} never")).assert().success());
    for part in [
        "data: 40 examples in Alpaca form\n",
        "\nexample 1 · ",
        "<user>say cat<|endoftext|><assistant>⟦cat<|endoftext|>⟧",
        "<user>say dog<|endoftext|><assistant>⟦dog mat<|endoftext|>⟧",
        " tokens in 40 documents; half have up to ",
        "packed: 40 documents in ",
        "one a row: 40 documents in 40 rows of 64 tokens, which are ",
    ] {
        assert!(plain.contains(part), "{part}: {plain}");
    }
    assert!(!plain.contains("example 3"));
    // Lengths below 32 and from there to 63, with bars in proportion.
    let bar = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [from, "to", to, count, bar] = words[..] else { return None };
        let ends = [from, to].map(|end| end.parse::<u64>());
        let is_bar = ends.iter().all(Result::is_ok) && bar.chars().all(|c| c == '█');
        is_bar.then(|| (ends.map(Result::unwrap), count.parse::<usize>().unwrap(), bar.chars().count()))
    };
    let bars: Vec<_> = plain.lines().filter_map(bar).collect();
    assert_eq!(bars.iter().map(|(ends, ..)| *ends).collect::<Vec<_>>(), [[0, 31], [32, 63]], "{plain}");
    assert_eq!(bars.iter().map(|(_, count, _)| count).sum::<usize>(), 40, "{plain}");
    let most = bars.iter().map(|(_, count, _)| *count).max().unwrap();
    assert!(bars.iter().all(|(_, count, width)| *width == (count * 40).div_ceil(most)), "{plain}");
    let pair = "{\"prompt\": \"say cat\", \"chosen\": \"cat\", \"rejected\": \"dog mat\"}\n";
    place.write("pairs.jsonl", pair.repeat(3));
    let line_of_pairs = "data pairs.jsonl --tokenizer tokenizer --seq 64 --examples 1 --color never";
    let pairs = stdout(&place.danlu(line_of_pairs).assert().success());
    for part in [
        "data: 3 pairs in preference form\n",
        "\npair 1 · chosen · ",
        "<assistant>⟦cat<|endoftext|>⟧",
        "\npair 1 · rejected · ",
        "<assistant>⟦dog mat<|endoftext|>⟧",
        "pairs: 3 pairs in 6 rows of 64 tokens, which are ",
    ] {
        assert!(pairs.contains(part), "{part}: {pairs}");
    }
    assert!(!pairs.contains("pair 2"));
    let colored = stdout(&place.danlu(&format!("{line} always")).assert().success());
    let first = "\x1b[2m<user>say cat<|endoftext|><assistant>\x1b[0m\x1b[32mcat<|endoftext|>\x1b[0m";
    assert!(colored.contains(first), "{colored}");
}

/// A shard that was made apart trains as its data do, and is refused with another tokenizer or when it is damaged.
#[test]
fn tokenised_shards_are_used_again() {
    let place = Place::new();
    write_data(&place);
    write_tokenizer(&place);
    let said = stdout(&place.danlu("tokenize alpaca.json --tokenizer tokenizer --out a.tokens").assert().success());
    assert!(said.starts_with("data: 40 examples in Alpaca form\na.tokens: ") && said.contains(" checksum "), "{said}");
    let shown = stdout(&place.danlu("data a.tokens --tokenizer tokenizer --examples 1").assert().success());
    assert!(shown.contains("<assistant>⟦cat<|endoftext|>⟧"), "{shown}");
    let refused = |line: &str, part: &str| {
        let said = stderr(&place.danlu(line).assert().code(1));
        assert!(said.contains(part), "{part}: {said}");
    };
    refused("tokenize alpaca.json --tokenizer tokenizer --out a.bin", "a.bin: a shard's name ends in .tokens");
    refused(
        "tokenize alpaca.json --tokenizer tokenizer --out a.tokens",
        "a.tokens: is there already; give another name",
    );
    // What its losses are on stands in it.
    let other = "a.tokens: was made with its losses on \"assistant\", and \"all\" is asked for: say --loss-on assistant, or \
                 make it anew with `danlu tokenize --loss-on all`";
    refused("data a.tokens --tokenizer tokenizer --loss-on all", other);
    place.danlu("tokenize alpaca.json --tokenizer tokenizer --loss-on all --out all.tokens").assert().success();
    let shown = stdout(&place.danlu("data all.tokens --tokenizer tokenizer --examples 1").assert().success());
    assert!(shown.contains("⟦<user>say cat<|endoftext|><assistant>cat<|endoftext|>⟧"), "{shown}");
    // Running text is predicted whole.
    place.danlu("tokenize text.txt --tokenizer tokenizer --out t.tokens").assert().success();
    place.danlu("tokenize text.txt --tokenizer tokenizer --out t.tokens --force").assert().success();
    place.danlu("data t.tokens --tokenizer tokenizer --loss-on all").assert().success();
    if has_adapter() {
        let train = |data: &str, out: &str| {
            let line = format!("--data {data} --tokenizer tokenizer --pack --seq 32 --out {out}");
            let said = stderr(&place.train(&line).assert().success());
            (said, fs::read(place.path(out).join("model.safetensors")).unwrap())
        };
        let (told, from_shard) = train("a.tokens", "shard");
        assert!(told.contains("data: 40 examples, tokenised already"), "{told}");
        assert!(from_shard == train("alpaca.json", "data").1, "the same tokens, the same model");
        for (data, asked, part) in [
            ("a.tokens", "all", other),
            (
                "all.tokens",
                "assistant",
                "all.tokens: was made with its losses on \"all\", and \"assistant\" is asked for",
            ),
        ] {
            let line = format!("--data {data} --tokenizer tokenizer --loss-on {asked} --seq 32 --out o");
            let said = stderr(&place.train(&line).assert().code(1));
            assert!(said.contains(part) && !place.path("o").exists(), "{said}");
        }
        let without = place.train("--data a.tokens --out o").assert().code(1);
        assert!(stderr(&without).contains("is tokenised already; give --tokenizer"), "{}", stderr(&without));
    }
    let mut bytes = fs::read(place.path("a.tokens")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    place.write("a.tokens", bytes);
    refused("data a.tokens --tokenizer tokenizer", "is damaged: checksum");
}

/// Rows of several lengths are the same rows: losses are those of rows of one length, fewer tokens are computed, and a run that
/// is taken up ends with the same bytes.
#[test]
fn short_rows_cost_less_and_are_taken_up() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    // Letters of which no two examples have many in the same order: nearly each is a token.
    let letter = |i: usize, k: usize| char::from(b'a' + ((i * 7 + k * (k + i) * 5) % 26) as u8);
    let line = |i: usize| {
        let output: String = (0..if i.is_multiple_of(3) { 22 } else { 4 }).map(|k| letter(i, k)).collect();
        format!("{{\"prompt\": \"{i}:\", \"completion\": \" {output}\"}}\n")
    };
    place.write("mixed.jsonl", (0..60).map(line).collect::<String>());
    let metrics = |run: &str, name: &str| -> Vec<f64> {
        let text = fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter_map(|m| m[name].as_f64()).collect()
    };
    let flags = "--data mixed.jsonl --seq 32 --batch 1 --steps 8";
    let said = stderr(&place.train(&format!("{flags} --out short")).assert().success());
    assert!(said.contains("rows are filled up to 16 or 32 tokens, as a batch needs: "), "{said}");
    place.train(&format!("{flags} --lengths 1 --out plain --quiet")).assert().success();
    for name in ["loss", "validation_loss"] {
        let (short, plain) = (metrics("short", name), metrics("plain", name));
        assert_eq!(short.len(), plain.len());
        // The same products in other tiles: what rounding makes of it, over eight steps.
        assert!(short.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-3), "{name}: {short:?} and {plain:?}");
    }
    place.write("most.jsonl", (0..60).map(line).collect::<String>());
    let flags = "--data most.jsonl --seq 32 --batch 1 --steps 8 --eval-every 4 --val-sequences 2 --log-format json";
    let said = stdout(&place.train(&format!("{flags} --out few")).assert().success());
    assert!(said.contains("validation, after every 4 steps, is of 2 of 3 held-out rows"), "{said}");
    assert_eq!(metrics("few", "validation_loss").len(), 2);
    let again = "finetune --model few --data most.jsonl --seq 32 --steps 1 --tune off --log-format json --out more";
    let said = stdout(&place.danlu(again).assert().success());
    assert!(said.contains("\"event\":\"loading\""), "weights on their way: {said}");
    let tokens = |run: &str| *metrics(run, "tokens").last().unwrap();
    assert_eq!(tokens("plain"), 8.0 * 32.0);
    assert!(tokens("short") < 0.8 * tokens("plain"), "{}", tokens("short"));

    for more in ["--batch 2", "--batch 2 --accumulate 2 --ema 0.9"] {
        let line =
            format!("--data mixed.jsonl --seq 32 --steps 9 --checkpoint-every 3 --keep 9 --quiet --force {more}");
        place.train(&format!("{line} --out calm")).assert().success();
        place.train(&format!("{line} --out hurt")).assert().success();
        for step in [6, 9] {
            // One may have been left out, since the one before was still being written.
            let _ = fs::remove_dir_all(place.path(&format!("hurt/checkpoints/step-{step}")));
        }
        fs::remove_file(place.path("hurt/model.safetensors")).unwrap();
        place.danlu("train --resume hurt --tune off --quiet").assert().success();
        let weights = |run: &str| fs::read(place.path(run).join("model.safetensors")).unwrap();
        assert!(weights("calm") == weights("hurt"), "{more}");
        assert_eq!(metrics("calm", "tokens"), metrics("hurt", "tokens"), "{more}");
    }
}

/// What the data are is said of each source by name, and what of them a model hardly knows, once.
#[test]
fn sources_are_told_by_name() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    write_data(&place);
    let parts = |text: &str| {
        format!(
            "{{\"messages\": [{{\"role\": \"alien\", \"content\": [{{\"type\": \"text\", \"text\": \"{text}\"}}]}}, \
             {{\"role\": \"assistant\", \"content\": [{{\"type\": \"text\", \"text\": \"y\"}}, \
             {{\"type\": \"text\", \"text\": \"o\"}}]}}]}}\n"
        )
    };
    place.write("parts.jsonl", parts("hi") + &parts("ho"));
    let said = stderr(&place.train("--data parts.jsonl --data text.txt --seq 32 --out o").assert().success());
    for part in [
        "note        parts.jsonl: 2 examples in messages form; the tokenizer has no chat template",
        "; of roles that few models know: alien",
        " tokens of running text",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(said.matches("alien").count(), 1, "{said}");
    // The plain template joins the texts of a list of parts, and refuses what is none.
    let shown = stdout(&place.danlu("data parts.jsonl --tokenizer o --examples 1").assert().success());
    assert!(shown.contains("Alien: hi\nAssistant:⟦ yo"), "{shown}");
    place.write("seen.jsonl", parts("hi") + &parts("ho").replacen("\"text\": \"ho\"", "\"image\": \"ho\"", 1));
    let said = stderr(&place.danlu("data seen.jsonl --tokenizer o").assert().code(1));
    let part = "seen.jsonl:2: the content of message 1 is a list of parts, of which number 1 is no text, and only text is read";
    assert!(said.contains(part), "{said}");
}
