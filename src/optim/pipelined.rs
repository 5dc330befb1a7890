//! The micro-batches of a step as one rank of a pipeline computes them: their gradients are added up where the parameters are.

use super::Optimizer;
use super::optimizer::{GRADIENTS, accumulate_sums};
use crate::base::TensorType;
use crate::error::{Error, Result};
use crate::graph::{Graph, Value};
use crate::nn::{Declare, ParamLayout};
use crate::ops::Accumulate;
use crate::parallel::{Reader, Staged};
use std::collections::HashMap;

impl Optimizer {
    /// The graph of all micro-batches of `rows` rows each, of a rank that has what `own` declares and trains the parameters of
    /// `layout`; `names` are those of all weights that were cut. The outputs of `staged` are the loss and how many targets count.
    /// It leaves the sums that [`Optimizer::apply`] takes; those of weights and losses are the last rank's alone, and zero
    /// elsewhere.
    ///
    /// # Errors
    /// If the loss does not depend on every parameter, or a rank does not have what it reads.
    pub fn pipelined_step(
        &self,
        mut staged: Staged,
        own: &dyn Declare,
        layout: &ParamLayout,
        names: &[String],
        rank: usize,
        rows: usize,
    ) -> Result<Graph> {
        let [loss, count] = staged.outputs[..] else { return Err(Error::Graph("a step ends with a loss".into())) };
        let [weight, scale] = self.weigh(&mut staged.graph, count, rows)?;
        let part = staged.graph.scope("accumulate", |g| g.mul(loss, weight))?;
        let gradients = staged.gradients(loss, scale)?;
        let mut g = Graph::new();
        let params: HashMap<String, Value> = own.declare(&mut g)?.named().into_iter().collect();
        let pages = layout.states(&mut g, GRADIENTS);
        let number = |g: &mut Graph, x: f32| g.constant("keep", TensorType::f32([1]), x.to_le_bytes().to_vec());
        let [zero, one] = [0.0, 1.0].map(|x| number(&mut g, x));
        let own: Vec<(Reader, Value)> = gradients.iter().filter(|(reader, _)| reader.rank == rank).copied().collect();
        let (mut batches, mut added, mut tells) = (0, 0, false);
        let wanted: Vec<Value> = gradients.iter().map(|(_, gradient)| *gradient).chain([weight, part]).collect();
        let find_own = |n: usize| {
            let lost = || Error::Graph(format!("this rank has no {}", names[n]));
            params.get(&names[n]).copied().ok_or_else(lost)
        };
        staged.unroll(&mut g, rank, &wanted, &find_own, &mut |g, turn, find| {
            batches = batches.max(turn.batch + 1);
            let keep = if turn.batch == 0 { zero } else { one };
            for (reader, gradient) in &own {
                let Some(gradient) = find(*gradient) else { continue };
                let name = &names[reader.weight];
                let (page, start) = layout.place(name).ok_or_else(|| Error::Graph(format!("no page has {name}")))?;
                g.scope(name, |g| g.apply(Accumulate { start }, &[pages[page], gradient, keep]))?;
                added += 1;
            }
            if let (Some(weight), Some(part)) = (find(weight), find(part)) {
                g.scope("accumulate", |g| accumulate_sums(g, [weight, part], keep))?;
                tells = true;
            }
            Ok(())
        })?;
        if added < own.len() * batches {
            return Err(Error::Graph("a gradient is made on another rank than its parameter's".into()));
        }
        if !tells {
            g.scope("accumulate", |g| accumulate_sums(g, [zero, zero], zero))?;
        }
        Ok(g)
    }
}
