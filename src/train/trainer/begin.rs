//! What the states hold before the first step, and before the first after a checkpoint.

use crate::compile::{First, compile};
use crate::error::Result;
use crate::nn::{Adapted, ParamLayout};
use crate::optim::Optimizer;
use crate::run::{Executor, States};
use crate::store::Loaded;
use crate::train::{Base, Subject};

/// Gives the states what they hold before the first step.
pub(super) async fn begin(
    states: &mut States,
    subject: &Subject,
    base: Option<&Base>,
    seed: u64,
    loaded: &mut dyn FnMut(Loaded),
) -> Result<()> {
    match (base, &subject.adapted) {
        (Some(base), Some(Adapted { base: frozen, lora })) => {
            base.checkpoint.stream(states, frozen, loaded).await?;
            match lora {
                Some(lora) => base.checkpoint.stream_fresh(states, frozen, lora, seed).await,
                None => Ok(()),
            }
        }
        (Some(base), None) => base.checkpoint.stream_pages(states, &subject.layout, loaded).await,
        (None, _) => {
            for (i, page) in subject.layout.init(seed).iter().enumerate() {
                let own = &page[subject.layout.kept(i)];
                states.write(&format!("param.{i}"), 0, bytemuck::cast_slice(own)).await?;
            }
            Ok(())
        }
    }
}

/// Makes the copies in f16 of parameters that were written from outside; from then on updates keep them up.
///
/// # Errors
/// If the device failed.
pub(in crate::train) async fn make_copies(
    states: &mut States,
    optimizer: &Optimizer,
    layout: &ParamLayout,
) -> Result<()> {
    let Some(graph) = optimizer.make_copies(layout)? else { return Ok(()) };
    let gpu = states.gpu().clone();
    let plan = compile(&graph, gpu.limits(), &mut First)?;
    Executor::new(&gpu, &plan, states).await?.run_for(&[], |_| ()).await
}
