//! The pipeline axis of a model of the family: which stage has which of its layers. The model itself is not asked
//! (`parallel/stages.rs` takes its graph apart).

use super::ModelConfig;
use super::specs::{EMBEDDING, layer_of};
use crate::error::{Error, Result};

/// Which stages have a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stages {
    /// The layer after each stage's last.
    ends: Vec<usize>,
    tied: bool,
}

impl ModelConfig {
    /// Layers shared out over so many stages, neighbours to one, so that the stage with most work has as little as can be; the
    /// output counts as work of the last.
    ///
    /// # Errors
    /// If there are fewer layers than stages.
    pub fn stages(&self, count: usize) -> Result<Stages> {
        self.check_stages(count)?;
        let layers = self.num_hidden_layers;
        let mut work = vec![0u128; layers];
        for spec in self.param_specs().iter().filter(|spec| spec.shape.rank() > 1) {
            if let Some(layer) = layer_of(&spec.name) {
                work[layer] += spec.shape.elements() as u128 * self.active(&spec.name) / 1000;
            }
        }
        work[layers - 1] += self.vocab_size as u128 * self.hidden_size as u128;
        Ok(Stages { ends: share(&work, count), tied: self.tie_word_embeddings })
    }

    pub(super) fn check_stages(&self, count: usize) -> Result<()> {
        let layers = self.num_hidden_layers;
        if count <= layers {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "the model has {layers} layers, which cannot be shared out over {count} stages; choose a smaller pipeline axis, or \
             leave interleave out"
        )))
    }

    /// Thousandths of a parameter's elements that work on a token.
    fn active(&self, name: &str) -> u128 {
        match self.experts.filter(|_| name.contains(".experts.")) {
            Some(experts) => 1000 * experts.per_token as u128 / experts.count as u128,
            None => 1000,
        }
    }
}

impl Stages {
    /// The stages that have a parameter, ascending: of a layer the layer's, of an embedding the first, of a last norm and an
    /// output the last; and where embedding and output are one, both.
    pub fn of(&self, name: &str) -> Vec<usize> {
        let last = self.ends.len() - 1;
        match layer_of(name) {
            Some(layer) => vec![self.ends.iter().position(|end| layer < *end).unwrap_or(last)],
            None if name == EMBEDDING && self.tied => vec![0, last],
            None if name == EMBEDDING => vec![0],
            None => vec![last],
        }
    }
}

/// Where each of `count` runs of neighbours ends so that the largest sum of a run is as small as it can be; none is empty. Of equal
/// ways one whose runs are alike is taken, and of these the one whose last runs are long: the first stages have more under way.
fn share(work: &[u128], count: usize) -> Vec<usize> {
    let n = work.len();
    let sum = |from: usize, to: usize| work[from..to].iter().sum::<u128>();
    // The least largest sum, and of these the least sum of squares, of the first i in j runs, and where the last begins.
    let mut best = vec![vec![((u128::MAX, u128::MAX), 0); n + 1]; count + 1];
    best[0][0] = ((0, 0), 0);
    for runs in 1..=count {
        for end in runs..=n {
            for start in runs - 1..end {
                let ((most, squares), _) = best[runs - 1][start];
                if most == u128::MAX {
                    continue;
                }
                let own = sum(start, end);
                let cost = (most.max(own), squares + (own / 1000 + 1) * (own / 1000 + 1));
                if cost < best[runs][end].0 {
                    best[runs][end] = (cost, start);
                }
            }
        }
    }
    let mut ends = vec![n];
    for runs in (2..=count).rev() {
        ends.push(best[runs][ends[ends.len() - 1]].1);
    }
    ends.reverse();
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_shared_out_evenly() {
        assert_eq!(share(&[1000; 6], 3), [2, 4, 6]);
        assert_eq!(share(&[1000, 1000, 1000, 1000, 4000], 2), [4, 5]);
        assert_eq!(share(&[1000; 5], 4), [1, 2, 3, 5]);
        assert_eq!(share(&[7], 1), [1]);
    }

    #[test]
    fn parameters_are_where_they_are_read() {
        let mut config = crate::model::find_config("llama-3.1-405b").unwrap();
        let stages = config.stages(16).unwrap();
        let count =
            |stage| (0..126).filter(|l| stages.of(&format!("model.layers.{l}.mlp.up_proj.weight")) == [stage]).count();
        let counts: Vec<usize> = (0..16).map(count).collect();
        assert_eq!(counts.iter().sum::<usize>(), 126);
        assert!(counts[..15].iter().all(|n| (7..=8).contains(n)) && counts[15] <= 8, "{counts:?}");
        assert_eq!(
            [stages.of(EMBEDDING), stages.of("lm_head.weight"), stages.of("model.norm.weight")],
            [[0], [15], [15]]
        );
        config.tie_word_embeddings = true;
        assert_eq!(config.stages(16).unwrap().of(EMBEDDING), [0, 15]);
        let said = config.stages(200).unwrap_err().to_string();
        assert!(said.contains("has 126 layers") && said.contains("200 stages"), "{said}");
    }
}
