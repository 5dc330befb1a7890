//! The commands as a person types them: what they print, what they leave on disk, and how they refuse.

#[path = "../common/shared.rs"]
mod shared;

mod adapting;
mod chat;
mod examples;
mod exporting;
mod finetuning;
mod generating;
mod handing_on;
#[cfg(unix)]
mod launching;
mod measuring;
mod meshes;
mod preferring;
#[cfg(all(unix, feature = "mpi"))]
mod processes;
mod refused;
mod resuming;
mod runs;
mod seeing;
#[cfg(unix)]
mod starters;
mod taking_up;
mod tuning;

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use danlu::gpu::Selector;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};

/// A llama of seven thousand parameters.
const TINY: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 300,
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32, "tie_word_embeddings": true}"#;

/// The same with four experts, whose heads two ranks can share.
const EXPERTS: &str = r#"{"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 300,
    "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 32,
    "tie_word_embeddings": true}"#;

/// Why nothing below runs without an adapter: the convention of `tests/ops.rs`.
fn has_adapter() -> bool {
    let allowed = std::env::var_os("DANLU_ALLOW_NO_ADAPTER").is_some();
    !allowed || !pollster::block_on(danlu::gpu::list()).is_empty()
}

/// The number of the adapter that commands compute on where none is named.
fn chosen() -> usize {
    let wanted = std::env::var("DANLU_ADAPTER").unwrap_or_default();
    Selector::from(wanted.as_str()).choose(&pollster::block_on(danlu::gpu::list())).unwrap().0
}

/// A folder with a configuration, a text and a cache.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        place.write("tiny.json", TINY);
        place.write("text.txt", "The cat sat on the mat. A dog saw the cat and ran to the red house.\n".repeat(60));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// The command in this folder; words are parted by white space.
    fn danlu(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_danlu"));
        command.current_dir(self.folder.path()).env("DANLU_CACHE", self.path("cache"));
        // What takes that long hangs, however much else the machine has to do.
        command.args(line.split_whitespace()).timeout(std::time::Duration::from_secs(600));
        if let (Ok(adapter), false) = (std::env::var("DANLU_ADAPTER"), line.contains("--adapter")) {
            command.args(["--adapter", &adapter]);
        }
        command
    }

    /// `danlu train` of a few small steps.
    fn train(&self, flags: &str) -> Command {
        let mut line = format!("train {flags}");
        for (flag, value) in
            [("--config", "tiny.json"), ("--data", "text.txt"), ("--seq", "16"), ("--batch", "2"), ("--steps", "3")]
        {
            if !flags.contains(flag) {
                line += &format!(" {flag} {value}");
            }
        }
        self.danlu(&(line + " --tune off"))
    }

    /// A command as a process that can be sent signals; where its standard output and its standard error go.
    fn process(&self, command: &Command, [stdout, stderr]: [Stdio; 2]) -> Child {
        Process::new(env!("CARGO_BIN_EXE_danlu"))
            .args(command.get_args())
            .current_dir(self.folder.path())
            .env("DANLU_CACHE", self.path("cache"))
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap()
    }

    /// Sends a signal to a training run once it has told its first step in JSON: all that it says on standard output, and
    /// its exit code.
    #[cfg(unix)]
    fn signalled(&self, train: &Command, signal: &str) -> (String, Option<i32>) {
        let mut run = self.process(train, [Stdio::piped(), Stdio::inherit()]);
        let (mut said, mut out) = (String::new(), BufReader::new(run.stdout.take().unwrap()));
        while !said.contains("\"event\":\"step\"") {
            assert!(out.read_line(&mut said).unwrap() > 0, "{said}");
        }
        assert!(Process::new("kill").args([signal, &run.id().to_string()]).status().unwrap().success());
        out.read_to_string(&mut said).unwrap();
        (said, run.wait().unwrap().code())
    }

    /// Names in a folder, sorted.
    fn names(&self, folder: &str) -> Vec<String> {
        let name = |e: std::io::Result<std::fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = std::fs::read_dir(self.path(folder)).unwrap().map(name).collect();
        names.sort();
        names
    }
}

impl Place {
    /// Names in a run's folder that are the model's, sorted.
    fn model(&self, folder: &str) -> Vec<String> {
        let of_run = |name: &String| {
            let own = ["checkpoints", "recipe.toml", "metrics.jsonl", "metrics.csv", "trained.json", ".lock", ".run"];
            own.contains(&name.as_str()) || name.starts_with("events.out.tfevents.")
        };
        self.names(folder).into_iter().filter(|name| !of_run(name)).collect()
    }
}

fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().exists()
}

/// What a command said on standard output.
fn stdout(done: &Assert) -> String {
    String::from_utf8(done.get_output().stdout.clone()).unwrap()
}

/// What a command said on standard error.
fn stderr(done: &Assert) -> String {
    String::from_utf8(done.get_output().stderr.clone()).unwrap()
}
