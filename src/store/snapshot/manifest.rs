//! What the manifest of a training checkpoint says, and how states are cut into files.

use super::Layout;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Changes when older checkpoints can no longer be read.
pub(super) const FORMAT: u32 = 1;
/// The manifest's name in its folder.
pub const MANIFEST: &str = "manifest.json";
/// The file with the manifest's own sum, in `sha256sum`'s form: `sha256sum -c manifest.sha256` checks it.
pub(super) const MANIFEST_SUM: &str = "manifest.sha256";

/// The manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this form.
    pub format: u32,
    /// Steps done when the checkpoint was taken.
    pub step: u64,
    /// Loss on held-out data after that step, where it was measured.
    pub validation: Option<f64>,
    /// What training knows besides: the recipe, where the data stand, on what it ran. This room does not read it.
    pub run: Value,
    /// The states, in the order in which their bytes follow one another.
    pub states: Vec<StateSize>,
    /// The files.
    pub shards: Vec<Shard>,
    /// Of how many ranks' folders the checkpoint consists: this one is the first's, and stands once the others do.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub parts: usize,
    /// Where the parameters lie in the states of the rank that wrote this; not in the oldest checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
}

fn one() -> usize {
    1
}

fn is_one(parts: &usize) -> bool {
    *parts == 1
}

/// A state and its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateSize {
    /// Its name in the plan.
    pub name: String,
    /// Its bytes, whole words.
    pub bytes: u64,
    /// First byte of the whole state that this is; above 0 where ranks share a state out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first: u64,
}

fn is_zero(first: &u64) -> bool {
    *first == 0
}

impl StateSize {
    /// A state that is whole.
    pub fn whole(name: &str, bytes: u64) -> StateSize {
        StateSize { name: name.into(), bytes, first: 0 }
    }
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its name.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of all of it, in hexadecimal.
    pub sha256: String,
    /// What it holds, one after another, after the header.
    pub parts: Vec<Part>,
}

/// A range of a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The state's name.
    pub state: String,
    /// First byte within the state.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Manifest {
    /// A manifest whose files are not written yet.
    pub fn new(step: u64, validation: Option<f64>, run: Value, states: Vec<StateSize>) -> Manifest {
        Manifest { format: FORMAT, step, validation, run, states, shards: Vec::new(), parts: 1, layout: None }
    }

    /// Bytes of all states.
    pub fn bytes(&self) -> u64 {
        self.states.iter().map(|s| s.bytes).sum()
    }
}

/// The bytes of all states, one after another, cut into loads (files, say) of at most `most` bytes.
pub fn cut(states: &[StateSize], most: u64) -> Vec<Vec<Part>> {
    let (mut files, mut room): (Vec<Vec<Part>>, u64) = (Vec::new(), 0);
    for state in states {
        let mut offset = 0;
        while offset < state.bytes {
            if room == 0 {
                files.push(Vec::new());
                room = most;
            }
            let bytes = room.min(state.bytes - offset);
            let part = Part { state: state.name.clone(), offset, bytes };
            files.last_mut().expect("pushed above").push(part);
            (offset, room) = (offset + bytes, room - bytes);
        }
    }
    files
}
