//! Kernels chosen for a plan, written down and chosen again: a run that is taken up later computes with the same ones,
//! whatever was measured in between.

use super::records::{KernelId, Key};
use crate::compile::{Chooser, Learning};
use crate::graph::{Io, Kernel, Op};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What was chosen for a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// What was chosen for.
    #[serde(flatten)]
    pub key: Key,
    /// The kernel.
    pub kernel: KernelId,
}

/// Takes what is known, and asks another chooser for the rest; remembers both.
pub struct Choices<'a> {
    known: &'a [Choice],
    then: &'a mut dyn Chooser,
    made: Vec<Choice>,
    asked: usize,
}

impl<'a> Choices<'a> {
    /// Chooses as `known` says, and what it does not say as `then` does.
    pub fn new(known: &'a [Choice], then: &'a mut dyn Chooser) -> Self {
        Choices { known, then, made: Vec::new(), asked: 0 }
    }

    /// Everything that was chosen, each key once.
    pub fn made(self) -> Vec<Choice> {
        self.made
    }

    /// How many keys were not known.
    pub fn asked(&self) -> usize {
        self.asked
    }
}

impl Chooser for Choices<'_> {
    fn choose(&mut self, op: &Arc<dyn Op>, io: &Io, kernels: &[Kernel]) -> usize {
        let key = Key::of(&**op, io, kernels);
        let of = |all: &[Choice]| {
            let choice = all.iter().find(|c| c.key == key)?;
            key.candidates.iter().position(|id| *id == choice.kernel)
        };
        if let Some(i) = of(&self.made) {
            return i;
        }
        let i = of(self.known).unwrap_or_else(|| {
            self.asked += 1;
            self.then.choose(op, io, kernels).min(kernels.len() - 1)
        });
        self.made.push(Choice { kernel: key.candidates[i].clone(), key });
        i
    }

    fn learn(&mut self) -> Learning<'_> {
        Box::pin(async {
            let again = self.then.learn().await;
            if again {
                // What was chosen meanwhile was no choice yet.
                (self.made, self.asked) = (Vec::new(), 0);
            }
            again
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Limits, TensorType};
    use crate::ops::MatMul;

    struct Always(usize);

    impl Chooser for Always {
        fn choose(&mut self, _op: &Arc<dyn Op>, _io: &Io, _kernels: &[Kernel]) -> usize {
            self.0
        }
    }

    #[test]
    fn what_was_chosen_is_chosen_again() {
        let op: Arc<dyn Op> = Arc::new(MatMul::new(false, false));
        let ty = TensorType::f32([256, 256]);
        let io = Io { outputs: op.infer(&[&ty, &ty]).unwrap(), inputs: vec![ty.clone(), ty] };
        let kernels = op.kernels(&io, &Limits::default());
        assert!(kernels.len() > 1);
        let (mut first, mut last) = (Always(0), Always(usize::MAX));
        let mut choices = Choices::new(&[], &mut last);
        assert_eq!(choices.choose(&op, &io, &kernels), kernels.len() - 1);
        assert_eq!(choices.choose(&op, &io, &kernels), kernels.len() - 1);
        assert_eq!(choices.asked(), 1);
        let text = serde_json::to_string(&choices.made()).unwrap();
        let known: Vec<Choice> = serde_json::from_str(&text).unwrap();
        assert_eq!(known.len(), 1);
        let mut choices = Choices::new(&known, &mut first);
        assert_eq!((choices.choose(&op, &io, &kernels), choices.asked()), (kernels.len() - 1, 0));
        // A kernel that is no more is no choice.
        assert_eq!((choices.choose(&op, &io, &kernels[..1]), choices.asked()), (0, 1));
        assert_eq!(choices.made().len(), 2);
    }
}
