//! `danlu chat` from outside: a script of lines in place of a person.

use super::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command as Process, Stdio};

/// The small model that the repository holds, a teller of stories without a chat template.
fn tiny() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny").display().to_string()
}

impl Place {
    /// A conversation with the small model by these lines.
    fn chat(&self, flags: &str, lines: &str) -> Command {
        let mut command = self.danlu(&format!("chat --model {} {flags}", tiny()));
        command.write_stdin(lines.to_string());
        command
    }
}

#[test]
fn lines_are_answered_saved_and_read_again() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let lines = "/system You tell stories.\nTell me about a fox.\n\"\"\"And\na cat?\"\"\"\n/tokens\n/save talk.json\n";
    let done = place.chat("--temperature 0 --tokens 12", lines).assert().success();
    let (out, err) = (stdout(&done), stderr(&done));
    assert!(err.contains("this model came without a chat template"), "{err}");
    assert!(out.ends_with("5 messages in talk.json\n"), "{out}");
    assert!(out.contains(" of 256 tokens, 5 messages\n"), "{out}");
    let saved: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(place.path("talk.json")).unwrap()).unwrap();
    let said = |at: usize| saved["messages"][at]["content"].as_str().unwrap().to_string();
    assert_eq!(
        (said(0).as_str(), said(1).as_str(), said(3).as_str()),
        ("You tell stories.", "Tell me about a fox.", "And\na cat?")
    );
    let expected = format!("{}\n{}\n", said(2), said(4));
    assert!(out.starts_with(&expected), "{out:?} does not begin with {expected:?}");

    // The same conversation, read again, goes on as it went; and a second try at temperature 0 says the same.
    let again = place
        .chat("--temperature 0 --tokens 12", "/load talk.json\n/retry\n/undo\n/undo\n/tokens\n")
        .assert()
        .success();
    let (again, said) = (stdout(&again), said(4));
    assert!(again.starts_with(&format!("5 messages\n{said}\n")), "{again:?} and {said:?}");
    assert!(again.ends_with(" of 256 tokens, 1 message\n"), "{again}");
}

#[test]
fn an_answer_ends_before_a_stop() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let tell = |flags: &str| {
        let done = place.chat(&format!("--temperature 0 --tokens 12 {flags}"), "Tell me about a fox.\n").assert();
        stdout(&done.success())
    };
    let whole = tell("");
    let word = whole.split_whitespace().nth(2).unwrap();
    let stopped = tell(&format!("--stop {word}"));
    assert_eq!(stopped.trim_end_matches('\n'), &whole[..whole.find(word).unwrap()]);
}

#[test]
fn settings_and_commands_are_heard() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let lines = "/help\n/set temperature 0\n/set tokens 3\n/set frequency_penalty 0.5\n/set\n/system\n/system Hm.\n/system\nHello\n/clear\n/tokens\n/quit\nnot said";
    let done = place.chat("--seed 5", lines).assert().success();
    let out = stdout(&done);
    assert!(out.starts_with("/system [TEXT]"), "{out}");
    assert!(
        out.contains("temperature 0, top-k 0, top-p 0.95, min-p 0, repetition-penalty 1, presence-penalty 0, frequency-penalty 0.5, seed 5, tokens 3\nthere is no system message\nHm.\n"),
        "{out}"
    );
    assert!(out.ends_with(" of 256 tokens, 1 message\n"), "{out}");
    assert!(stderr(&done).contains("the answer was cut at 3 tokens"), "{}", stderr(&done));
    place.write("alien.json", r#"{"messages": [{"role": "alien", "content": "Hm."}]}"#);
    for flags in ["--context 0", "--stop="] {
        place.chat(flags, "").assert().code(2);
    }
    for (lines, expected) in [
        ("/nonsense\nhello\n", "danlu: standard input, line 1: there is no command /nonsense; /help lists them"),
        ("/retry\n", "nothing was said yet"),
        ("/set temperature -3\n", "temperature -3 is not a number from 0 up"),
        ("/load absent.json\n", "cannot read absent.json"),
        (
            "\n/set tokens\\\n 3\n/load alien.json\n",
            "line 4: alien.json: message 1 has the role \"alien\"; there are system, ",
        ),
        ("/load text.txt\n", "text.txt: is no conversation that /save wrote"),
    ] {
        let done = place.chat("", lines).assert().failure();
        assert!(stderr(&done).contains(expected), "{lines:?}: {}", stderr(&done));
        assert_eq!(stdout(&done), "", "a script ends where it went wrong");
    }
}

#[test]
fn a_full_context_drops_the_oldest_turns_and_says_so() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let lines = "One day there was a dog.\n".repeat(6) + "/tokens\n";
    let done = place.chat("--temperature 0 --tokens 12 --context 96 --system Stories.", &lines).assert().success();
    let said = "danlu: the context of 96 tokens is full: the oldest";
    assert!(stderr(&done).contains(said), "{}", stderr(&done));
    assert!(stdout(&done).ends_with(" of 96 tokens, 13 messages\n"), "{}", stdout(&done));
    let long = "word ".repeat(100);
    let done = place.chat("--context 64", &long).assert().failure();
    assert!(
        stderr(&done).contains("the message is too long: with what must stand before it, it has"),
        "{}",
        stderr(&done)
    );
}

/// A model's own template decides what it is given, and what it refuses.
#[test]
fn the_models_own_template_is_used() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    std::fs::create_dir(place.path("model")).unwrap();
    for entry in std::fs::read_dir(tiny()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, place.path("model").join(path.file_name().unwrap())).unwrap();
    }
    let template = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}\
                    {{ bos_token }}{{ messages[-1].content }}{{ mood }}";
    place.write("model/chat_template.jinja", template);
    let chat = |flags: &str| {
        let mut command = place.danlu(&format!("chat --model model --temperature 0 --tokens 8 {flags}"));
        command.write_stdin("Once upon a time\n");
        command.assert()
    };
    let (one, other) = (chat("").success(), chat("--variable mood=sad").success());
    assert_ne!(stdout(&one), stdout(&other));
    assert!(!stderr(&one).contains("without a chat template"));
    let own = stderr(&chat("--variable messages=3").failure());
    assert!(
        own.contains("--variable messages=3: messages is what the conversation itself gives to the template"),
        "{own}"
    );
    let refused = chat("--system Stories").failure();
    let expected = "the model's chat template refuses the conversation: No system role";
    assert!(stderr(&refused).contains(expected), "{}", stderr(&refused));
}

/// Ctrl-C stops an answer; the conversation goes on.
#[test]
#[cfg(unix)]
fn ctrl_c_stops_the_answer_and_not_the_program() {
    if !has_adapter() {
        return;
    }
    let place = Place::new();
    let mut command = Process::new(env!("CARGO_BIN_EXE_danlu"));
    command.current_dir(place.folder.path()).env("DANLU_CACHE", place.path("cache"));
    command.args(["chat", "--model", &tiny(), "--tokens", "200", "--temperature", "0"]);
    if let Ok(adapter) = std::env::var("DANLU_ADAPTER") {
        command.args(["--adapter", &adapter]);
    }
    let mut run = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = run.stdin.take().unwrap();
    lines.write_all(b"Once upon a time there was a dog.\n").unwrap();
    let mut out = run.stdout.take().unwrap();
    let mut first = [0; 4];
    out.read_exact(&mut first).unwrap();
    assert!(Process::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap().success());
    let mut err = BufReader::new(run.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("danlu: stopped\n") {
        assert!(err.read_line(&mut said).unwrap() > 0, "it ended: {said}");
    }
    lines.write_all(b"/tokens\n").unwrap();
    drop(lines);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert!(run.wait().unwrap().success());
    assert!(rest.ends_with(" of 256 tokens, 2 messages\n"), "{rest}");
}

/// The instruct model of the wheel that the shared folder's README names, where `DANLU_TEST_SMOLLM2` says it lies.
#[test]
fn smollm2_chats_by_its_own_template() {
    let Some(model) = std::env::var_os("DANLU_TEST_SMOLLM2").filter(|_| has_adapter()) else {
        eprintln!("skipped: DANLU_TEST_SMOLLM2 names no SmolLM2-135M-Instruct.gguf");
        return;
    };
    let place = Place::new();
    let mut command = place.danlu("chat --temperature 0 --tokens 24 --context 512 --model");
    command.arg(model).write_stdin("What is the capital of France?\nAnd of Italy?\n/tokens\n");
    let done = command.timeout(std::time::Duration::from_secs(900)).assert().success();
    let out = stdout(&done);
    assert!(out.contains("Paris") && out.contains("Rome"), "{out}");
    assert!(!stderr(&done).contains("without a chat template"), "{}", stderr(&done));
}
