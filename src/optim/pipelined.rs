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

/// What goes through a pipeline at a time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MicroBatch {
    /// Its rows.
    pub rows: usize,
    /// What it counts beside its loss.
    pub tallies: Vec<Tally>,
    /// What the rank that makes it tells as `<name>.<micro-batch>`, in the graph for one device.
    pub told: Vec<(String, Value)>,
}

/// A number that every micro-batch gives, and where it is added up.
#[derive(Debug, Clone, PartialEq)]
pub struct Tally {
    /// It, in the graph for one device.
    pub number: Value,
    /// A state of a name that [`Optimizer::is_total`] knows.
    pub state: String,
    /// Its type.
    pub ty: TensorType,
    /// Which of its elements is the first.
    pub start: usize,
}

impl Tally {
    fn add(&self, g: &mut Graph, value: Value, keep: Value) -> Result<()> {
        let state = g.state(&self.state, self.ty.clone());
        g.apply(Accumulate { start: self.start }, &[state, value, keep]).map(|_| ())
    }
}

impl Optimizer {
    /// The graph of all micro-batches of a step, of a rank that has what `own` declares and trains the parameters of `layout`;
    /// `names` are those of all weights that were cut. The outputs of `staged` are the loss, how many targets count, the numbers
    /// that are tallied, and those that are told. It leaves the sums that [`Optimizer::apply`] takes; those of weights, losses and
    /// tallies are of the rank that makes them alone, and zero elsewhere.
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
        micro: &MicroBatch,
    ) -> Result<Graph> {
        let MicroBatch { rows, tallies, told } = micro;
        let outputs = staged.outputs.clone();
        let rest = tallies.len() + told.len();
        let Some((&[loss, count], rest)) = outputs.split_first_chunk().filter(|(_, others)| others.len() == rest)
        else {
            return Err(Error::Graph(
                "a step ends with a loss, a count, and what is added up or told beside them".into(),
            ));
        };
        let (numbers, telling) = rest.split_at(tallies.len());
        let [weight, scale] = self.weigh(&mut staged.graph, count, *rows)?;
        let part = staged.graph.scope("accumulate", |g| g.mul(loss, weight))?;
        let gradients = staged.gradients(loss, scale)?;
        let mut g = Graph::new();
        let params: HashMap<String, Value> = own.declare(&mut g)?.named().into_iter().collect();
        let pages = layout.states(&mut g, GRADIENTS);
        let number = |g: &mut Graph, x: f32| g.constant("keep", TensorType::f32([1]), x.to_le_bytes().to_vec());
        let [zero, one] = [0.0, 1.0].map(|x| number(&mut g, x));
        let own: Vec<(Reader, Value)> = gradients.iter().filter(|(reader, _)| reader.rank == rank).copied().collect();
        let (mut batches, mut added, mut tells) = (0, 0, false);
        let mut tallied = vec![false; tallies.len()];
        let gradients = gradients.iter().map(|(_, gradient)| *gradient);
        let wanted: Vec<Value> = gradients.chain([weight, part]).chain(rest.iter().copied()).collect();
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
            for ((tally, number), is_here) in tallies.iter().zip(numbers).zip(&mut tallied) {
                let Some(number) = find(*number) else { continue };
                g.scope("accumulate", |g| tally.add(g, number, keep))?;
                *is_here = true;
            }
            for ((name, _), value) in told.iter().zip(telling) {
                find(*value).into_iter().for_each(|value| g.output(&format!("{name}.{}", turn.batch), value));
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
        // What was there are the sums over all ranks of the step before.
        for ((tally, number), _) in tallies.iter().zip(numbers).zip(tallied).filter(|(_, is_here)| !is_here) {
            let ty = staged.graph.ty(*number).clone();
            let bytes = vec![0; ty.bytes() as usize];
            g.scope("accumulate", |g| {
                let nothing = g.constant("nothing", ty, bytes);
                tally.add(g, nothing, zero)
            })?;
        }
        Ok(g)
    }
}
