//! A model with an adapter: beside it as it serves, fresh as it is trained, or made one with it.

use super::adapter::{Delta, PeftAdapter};
use super::narrow::Narrow;
use super::{Checkpoint, Loaded};
use crate::error::Result;
use crate::nn::{Adapted, Frozen, Lora, LoraModule, ParamSpec};
use crate::run::States;
use std::path::Path;

impl Checkpoint {
    /// The same model with an adapter in PEFT's form beside it, as it serves.
    ///
    /// # Errors
    /// As [`PeftAdapter::open`].
    pub fn adapt(mut self, folder: &Path) -> Result<Checkpoint> {
        self.adapter = Some(PeftAdapter::open(folder, self.config())?);
        Ok(self)
    }

    /// The model that an adapter in PEFT's form makes of this one: its weights are W + ΔW as they are read.
    ///
    /// # Errors
    /// As [`PeftAdapter::open`].
    pub fn merge(self, folder: &Path) -> Result<Checkpoint> {
        let mut merged = self.adapt(folder)?;
        merged.merges = true;
        Ok(merged)
    }

    /// The model as it serves: its weights as [`Checkpoint::frozen`] has them, and the adapter that it was given.
    ///
    /// # Errors
    /// As [`Checkpoint::read_pages`].
    pub fn served(&self, page_bytes: u64) -> Result<Adapted> {
        let beside = self.adapter.as_ref().filter(|_| !self.merges);
        Ok(Adapted { base: self.frozen()?, lora: beside.map(|a| a.lora(page_bytes)) })
    }

    /// Streams all of [`Checkpoint::served`] to the device.
    ///
    /// # Errors
    /// As [`Checkpoint::stream`].
    pub async fn stream_served(
        &self,
        states: &mut States,
        served: &Adapted,
        progress: &mut dyn FnMut(Loaded),
    ) -> Result<()> {
        self.stream(states, &served.base, progress).await?;
        let (Some(adapter), Some(lora)) = (&self.adapter, &served.lora) else { return Ok(()) };
        put_pages(states, lora, &adapter.pages(lora)).await?;
        if lora.modules().iter().all(|m| adapter.magnitudes(m).is_none()) {
            return Ok(());
        }
        let lengths = self.lengths(&served.base, lora.modules(), &|m| Some(adapter.update(m)))?;
        for (module, lengths) in lora.modules().iter().zip(lengths) {
            let magnitudes = adapter.magnitudes(module).unwrap_or_default();
            let gain: Vec<f32> = magnitudes.iter().zip(&lengths).map(|(m, length)| m / length).collect();
            put(states, &module.gain(), &gain).await?;
        }
        Ok(())
    }

    /// Puts fresh adapters beside a model that is on the device: where magnitudes are trained, they begin as the lengths of
    /// the rows that the device holds.
    ///
    /// # Errors
    /// As [`Checkpoint::stream`].
    pub async fn stream_fresh(&self, states: &mut States, base: &Frozen, lora: &Lora, seed: u64) -> Result<()> {
        let mut pages = lora.layout().init(seed);
        if lora.trains_magnitudes() {
            let lengths = self.lengths(base, lora.modules(), &|_| None)?;
            for (module, lengths) in lora.modules().iter().zip(lengths) {
                let (page, start) = lora.layout().place(&module.names()[2]).expect("magnitudes are trained");
                pages[page][start..start + lengths.len()].copy_from_slice(&lengths);
                let squares: Vec<f32> = lengths.iter().map(|x| x * x).collect();
                put(states, &module.squares(), &squares).await?;
            }
        }
        put_pages(states, lora, &pages).await
    }

    /// The lengths of the rows of layers' weights as the device holds them, with what an adapter adds.
    fn lengths(
        &self,
        base: &Frozen,
        modules: &[LoraModule],
        delta: &dyn Fn(&LoraModule) -> Option<Delta>,
    ) -> Result<Vec<Vec<f32>>> {
        let specs: Vec<ParamSpec> = self.model().param_specs();
        let weights = self.find_scaled(&specs)?;
        let lengths = |module: &LoraModule| {
            let name = format!("{}.weight", module.name);
            let weight = weights.iter().find(|w| w.name == name).expect("adapters are of the model's own layers");
            let (_, ty) = base.params().iter().find(|(own, _)| *own == name).expect("an adapter is where its layer is");
            Narrow::new(weight, ty.dtype)?.lengths(delta(module).as_ref())
        };
        modules.iter().map(lengths).collect()
    }
}

async fn put(states: &mut States, name: &str, values: &[f32]) -> Result<()> {
    states.buffer(name, 4 * values.len() as u64).await?;
    states.write(name, 0, bytemuck::cast_slice(values)).await
}

async fn put_pages(states: &mut States, lora: &Lora, pages: &[Vec<f32>]) -> Result<()> {
    debug_assert_eq!(pages.len(), lora.layout().pages().len());
    for (i, page) in pages.iter().enumerate() {
        put(states, &format!("param.{i}"), page).await?;
    }
    Ok(())
}
