//! What a person, or a machine, sees of a training run.

use crate::base::count;
use crate::compile::human_bytes;
use crate::store::Loaded;
use crate::train::{Event, Observer, RECIPE, Recipe, Rewards};
use clap::ValueEnum;
use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};
use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How a run is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// Bars and sentences.
    #[default]
    Text,
    /// One JSON object a line, on standard output.
    Json,
}

/// The observer that a choice of flags asks for. Once the run is `asked` to end, a bar says so: until the step is done nothing else does.
pub fn observer(format: LogFormat, quiet: bool, recipe: &Recipe, asked: Arc<AtomicBool>) -> Box<dyn Observer + Send> {
    match format {
        LogFormat::Json => Box::new(Json),
        LogFormat::Text if quiet => Box::new(Quiet),
        LogFormat::Text => Box::new(Terminal {
            bar: ProgressBar::hidden(),
            recipe: summary(recipe),
            steps: recipe.steps,
            last: String::new(),
            asked,
            begun: Arc::new(Mutex::new((Instant::now(), 0))),
        }),
    }
}

/// What the person typed to get here, so that the command we print works where `danlu` is not in the PATH.
fn program() -> String {
    std::env::args().next().filter(|name| !name.is_empty()).unwrap_or_else(|| "danlu".into())
}

/// A word as a shell wants it.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/\\.:_-+=@,~".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

struct Json;

impl Observer for Json {
    fn event(&mut self, event: &Event) {
        say!("{}", serde_json::to_string(event).expect("events serialise"));
    }
}

/// What a rank that does not print has to say: a line of JSON for each event, in a file of its own.
pub struct RankLog {
    file: std::fs::File,
}

impl RankLog {
    /// Goes on with the file `ranks/rank-N.jsonl` of a run.
    pub fn open(out: &std::path::Path, rank: usize) -> crate::error::Result<RankLog> {
        let folder = out.join("ranks");
        crate::store::atomic::create_folder(&folder)?;
        let path = folder.join(format!("rank-{rank}.jsonl"));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        Ok(RankLog { file: file.map_err(|e| crate::error::Error::io("write", &path, e))? })
    }
}

impl Observer for RankLog {
    fn event(&mut self, event: &Event) {
        // A log that cannot be written stops nothing.
        let _ = writeln!(self.file, "{}", serde_json::to_string(event).expect("events serialise"));
    }
}

/// Says only where the model is.
struct Quiet;

impl Observer for Quiet {
    fn event(&mut self, event: &Event) {
        if let Event::Saved { folder, .. } = event {
            say!("{}", folder.display());
        }
    }
}

/// What a recipe sets otherwise than by default, and where all of it is kept.
fn summary(recipe: &Recipe) -> String {
    let (values, defaults) = (recipe.values(), Recipe::default().values());
    let own = values.iter().filter(|(key, value)| defaults.get(*key) != Some(value) && *key != "out");
    let own: Vec<String> = own.map(|(key, value)| format!("{key} = {value}")).collect();
    let own = if own.is_empty() { "all by default".into() } else { own.join(", ") };
    format!("{own}; kept in {}", recipe.out.join(RECIPE).display())
}

/// Parameters of a model; of these those that are trained, and those of them that this rank holds, where they are not all.
fn counted([all, trained, held]: [u64; 3]) -> String {
    let short = |n: u64| if n < 100_000 { n.to_string() } else { format!("{:.2} M", n as f64 / 1e6) };
    let mut text = format!("{} parameters", short(all));
    if trained != all {
        text += &format!(", {} trained", short(trained));
    }
    if held != trained {
        text += &format!(", of which this rank holds {}", short(held));
    }
    text
}

/// Stands before the bar of a run that has been asked to end.
const ENDING: &str = "ends and saves after this step; Ctrl-C again leaves at once, unsaved · ";

struct Terminal {
    bar: ProgressBar,
    recipe: String,
    steps: u64,
    last: String,
    asked: Arc<AtomicBool>,
    /// When this process took its first step, and how many were done then.
    begun: Arc<Mutex<(Instant, u64)>>,
}

impl Terminal {
    /// Prints above the bar; where there is no terminal, plainly.
    fn line(&self, text: &str) {
        if self.bar.is_hidden() { tell!("{text}") } else { self.bar.println(text) }
    }

    fn going(&mut self, template: &str, done: u64, total: u64) {
        if self.bar.length() != Some(total) || self.bar.is_finished() {
            self.bar = ProgressBar::new(total);
            self.bar.set_style(ProgressStyle::with_template(template).expect("a valid template"));
        }
        self.bar.set_position(done);
        if done >= total {
            self.bar.finish_and_clear();
        }
    }

    fn ready(&mut self, event: &Event) {
        let Event::Ready {
            adapter,
            parameters,
            trained,
            held,
            train_tokens,
            val_tokens,
            totals,
            step_limit,
            steps,
            ..
        } = event
        else {
            return;
        };
        tell!("recipe      {}", self.recipe);
        tell!("adapter     {adapter}");
        tell!("model       {}", counted([*parameters, *trained, *held]));
        tell!("data        {train_tokens} tokens to train on, {val_tokens} held out");
        let gflop = totals.flops as f64 / 1e9;
        let limit =
            step_limit.map_or(String::new(), |s| format!(", at least {:.0} ms by the measured roofline", s * 1e3));
        let (dispatches, bytes) = (totals.dispatches, human_bytes(totals.device_bytes));
        tell!("step        {dispatches} dispatches, {gflop:.2} Gflop, {bytes} on the device{limit}");
        self.steps = *steps;
        self.bar = ProgressBar::new(*steps);
        let style = ProgressStyle::with_template("{asked}{bar:24} {pos}/{len} {msg} eta {left}");
        let asked = self.asked.clone();
        let ending = move |_: &ProgressState, line: &mut dyn fmt::Write| {
            if asked.load(Ordering::Relaxed) {
                // What a line has no room for goes to nobody.
                let _ = line.write_str(ENDING);
            }
        };
        let begun = self.begun.clone();
        // By the steps of this process: those before it was taken up took none of its time.
        let left = move |bar: &ProgressState, line: &mut dyn fmt::Write| {
            let (since, first) = *begun.lock().unwrap_or_else(PoisonError::into_inner);
            let (done, rest) = (bar.pos().saturating_sub(first), bar.len().unwrap_or(0).saturating_sub(bar.pos()));
            let _ = match done {
                0 => line.write_str("-"),
                _ => write!(line, "{:#}", HumanDuration(since.elapsed().mul_f64(rest as f64 / done as f64))),
            };
        };
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), 0);
        self.bar.set_style(style.expect("a valid template").with_key("asked", ending).with_key("left", left));
        self.bar.enable_steady_tick(Duration::from_millis(500));
    }

    fn step(&mut self, event: &Event) {
        let Event::Step {
            step,
            loss,
            lr,
            grad_norm,
            loss_scale,
            skipped,
            rewards,
            experts,
            tokens_per_second,
            roofline,
            idle,
            ..
        } = event
        else {
            return;
        };
        let scale = loss_scale.map_or(String::new(), |s| format!(" scale {s}"));
        let left_out = skipped.filter(|n| *n > 0).map_or(String::new(), |n| format!(" ({n} skipped)"));
        let share = roofline.map_or(String::new(), |r| format!(" {:.0}% of roofline", r * 100.0));
        let waits = idle.map_or(String::new(), |idle| format!(" {:.0}% idle", idle * 100.0));
        let margin = rewards.map_or(String::new(), |r| format!(" margin {:.3}", r.margin));
        let busiest = experts.map_or(String::new(), |e| format!(" busiest expert {:.1}x", e.busiest));
        let dropped =
            experts.filter(|e| e.dropped > 0).map_or(String::new(), |e| format!(" {} slots dropped", e.dropped));
        self.last = format!(
            "loss {loss:.3}{margin} lr {lr:.1e} norm {grad_norm:.2}{scale}{left_out}{busiest}{dropped} {tokens_per_second:.0} tok/s{share}{waits}"
        );
        self.bar.set_position(*step);
        self.bar.set_message(self.last.clone());
        // Without a terminal there is no bar: a line now and then.
        if self.bar.is_hidden() && (step.is_multiple_of(self.steps.div_ceil(20)) || *step == 1) {
            tell!("step {step}/{} {}", self.steps, self.last);
        }
    }
}

impl Observer for Terminal {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Note { text } => self.line(&format!("note        {text}")),
            Event::Tokenising { done, total } => {
                self.going("tokenising {bar:32} {bytes}/{total_bytes}", *done, *total);
            }
            Event::Loading { done, total } => self.going("loading {bar:32} {bytes}/{total_bytes}", *done, *total),
            Event::Reference { done, total } => {
                self.going("reference {bar:32} {pos}/{len} pairs, eta {eta}", *done, *total);
            }
            Event::Ready { .. } => self.ready(event),
            Event::Step { .. } => self.step(event),
            Event::Validation { step, loss, rewards: None } => {
                self.line(&format!("step {step}: validation loss {loss:.4}, perplexity {:.2}", loss.exp()))
            }
            Event::Validation { step, loss, rewards: Some(rewards) } => {
                let Rewards { chosen, rejected, margin, accuracy } = rewards;
                self.line(&format!(
                    "step {step}: validation loss {loss:.4}, {:.0} % of pairs right, rewards {chosen:.3} and {rejected:.3}, \
                     margin {margin:.3}",
                    100.0 * accuracy
                ));
            }
            Event::Experts { step, shares } => {
                let of = |pick: fn(f32, f32) -> f32| shares.iter().flatten().copied().reduce(pick).unwrap_or(0.0);
                let [least, most] = [of(f32::min), of(f32::max)].map(|share| 100.0 * share);
                self.line(&format!("step {step}: from {least:.1} to {most:.1} % of a layer's slots an expert"));
            }
            Event::Task { step, task, items, metrics } => {
                let figures: Vec<String> = metrics.iter().map(|m| format!("{} {:.4}", m.name, m.value)).collect();
                self.line(&format!("step {step}: {task}, {items} items: {}", figures.join(", ")))
            }
            Event::Sample { text, .. } => {
                let frame = textwrap::Options::new(100).initial_indent("│ ").subsequent_indent("│ ");
                self.line(&format!("┌ sample\n{}\n└", textwrap::fill(text.trim(), frame)));
            }
            Event::Checkpoint { step, bytes, stall, seconds, .. } => {
                let bytes = human_bytes(*bytes);
                self.line(&format!(
                    "step {step}: checkpoint of {bytes}, on disk after {seconds:.1} s; training waited {stall:.3} s"
                ));
            }
            Event::Resumed { step, folder } => {
                let folder = folder.display();
                self.line(&match step {
                    0 => format!("resumed     {folder} has no checkpoint yet: it begins anew"),
                    _ => format!("resumed     {folder} after step {step}"),
                });
                *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), *step);
                self.bar.set_position(*step);
            }
            Event::Saved { step, folder, seconds, interrupted, resumable, base } => {
                self.bar.finish_and_clear();
                let how = if *interrupted { "stopped early" } else { "done" };
                let steps = count(*step as usize, "step");
                let (program, folder) = (shell(&program()), shell(&folder.display().to_string()));
                if *interrupted && !resumable {
                    tell!("there is no checkpoint of it, from which it could go on (--checkpoint-every)\n");
                } else if *interrupted {
                    tell!("go on with it by\n\n    {program} train --resume {folder}\n");
                }
                match (self.last.is_empty(), *interrupted) {
                    (false, _) => tell!("{how} after {steps} in {seconds:.0} s; last step: {}", self.last),
                    (true, true) => tell!("{how} after {steps}"),
                    (true, false) => tell!("complete already: all {step} steps were done before, and none was added"),
                }
                let (what, model) = match base {
                    Some(base) => ("adapter", format!("{} --lora {folder}", shell(base))),
                    None => ("model", folder.clone()),
                };
                tell!("the {what} lies in {folder}; run it with\n");
                tell!("    {program} generate --model {model} --prompt \"One day\"\n");
            }
        }
    }
}

/// A bar for the weights of a model on their way, where somebody watches, and what moves it.
pub(super) fn loading() -> (ProgressBar, impl FnMut(Loaded)) {
    let style = ProgressStyle::with_template("loading {bar:32} {bytes}/{total_bytes}");
    let bar = ProgressBar::no_length().with_style(style.expect("a valid template"));
    let moved = bar.clone();
    (bar, move |loaded: Loaded| {
        moved.set_length(loaded.total);
        moved.set_position(loaded.done);
    })
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn parameters_are_told_whole_and_in_part() {
        assert_eq!(counted([1_250_000; 3]), "1.25 M parameters");
        assert_eq!(counted([1_250_000, 50_000, 50_000]), "1.25 M parameters, 50000 trained");
        assert_eq!(counted([1_250_000, 1_250_000, 700_000]), "1.25 M parameters, of which this rank holds 0.70 M");
        let both = "1.25 M parameters, 50000 trained, of which this rank holds 30000";
        assert_eq!(counted([1_250_000, 50_000, 30_000]), both);
    }
}
