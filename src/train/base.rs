//! What a run begins with where it is not a fresh model, and what of a model it trains: all of it, or adapters beside weights
//! that stay as they are.

use super::Recipe;
use crate::base::{Axis, Limits};
use crate::compile::fits_buffer;
use crate::data::{Tokenizer, hash::Hasher, tokenizer_files};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::model::{Llama, ModelConfig};
use crate::nn::{Adapted, Declare, Frozen, Held, Lora, ParamLayout, Params, Parts};
use crate::store::{Checkpoint, PeftAdapter};
use std::path::Path;
use std::sync::Arc;

/// A model on disk that a run goes on with.
#[derive(Debug)]
pub struct Base {
    /// The model.
    pub checkpoint: Checkpoint,
    /// What the person called it.
    pub name: String,
    /// Hash of its configuration and of every weight.
    pub hash: u64,
}

impl Base {
    /// Opens a Hugging Face folder or a GGUF file, and reads it once for its hash.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open(path: &Path, name: &str) -> Result<Base> {
        let checkpoint = Checkpoint::open(path)?;
        let mut hasher = Hasher::new();
        hasher.update(checkpoint.config().to_json().as_bytes());
        for tensor in checkpoint.tensors().iter() {
            hasher.update(format!("{} {} {:?}", tensor.name, tensor.shape, tensor.dtype()?).as_bytes());
            hasher.update(tensor.bytes);
        }
        Ok(Base { checkpoint, name: name.into(), hash: hasher.finish() })
    }

    /// The configuration and the tokenizer, for sequences of so many tokens.
    ///
    /// # Errors
    /// If the model holds no tokenizer that can be used, or was not made for sequences so long.
    pub fn parts(&self, seq: usize) -> Result<(ModelConfig, Tokenizer)> {
        let (config, tokenizer) = (self.checkpoint.config().clone(), Tokenizer::of(&self.checkpoint)?);
        let most = config.max_context();
        if seq > most {
            return Err(Error::Invalid(format!(
                "seq is {seq}, and {} was made for texts of up to {most} tokens; choose a smaller --seq",
                self.name
            )));
        }
        Ok((config, tokenizer))
    }

    /// Refuses an adapter that PEFT would find no layers for: families whose own files pack several layers into one, or have other names
    /// for them.
    ///
    /// # Errors
    /// A sentence with the first such layer, or as [`PeftAdapter::open`].
    pub fn check_peft(&self, adapter: &Path) -> Result<()> {
        let model = self.checkpoint.model();
        let adapter = PeftAdapter::open(adapter, self.checkpoint.config())?;
        for module in adapter.modules() {
            let sources = model.sources(&format!("{}.weight", module.name));
            let stored = format!("{}.weight", adapter.stored(module));
            if let Some(other) = sources.iter().find(|s| s.tensor != stored) {
                return Err(Error::Invalid(format!(
                    "{} models keep {} as a part of {}, so that PEFT would find no layer for this adapter; write the model \
                     that it makes, with --merge, or a .gguf file",
                    self.checkpoint.config().family.name,
                    module.name,
                    other.tensor
                )));
            }
        }
        Ok(())
    }

    /// The files of its tokenizer, templates among them, to be written beside a model that was made of it.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn tokenizer_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        tokenizer_files(&self.checkpoint)
    }
}

/// What of a model is trained.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Where what is trained lies: all parameters, or the adapters'.
    pub layout: ParamLayout,
    /// The weights that stay as they are, and the adapters; nothing where all parameters are trained.
    pub adapted: Option<Adapted>,
}

impl Subject {
    /// What a recipe trains of a model. Frozen weights have the types that `base` gives them; where there is none, those of
    /// a model in bf16.
    ///
    /// # Errors
    /// If the recipe's adapters do not fit the model, or its weights its configuration.
    pub fn new(model: &Llama, recipe: &Recipe, base: Option<&Base>, limits: &Limits) -> Result<Subject> {
        Subject::of_rank(0, model, recipe, base, limits)
    }

    /// The same for a rank of the recipe's mesh, which may have parts of the parameters only.
    ///
    /// # Errors
    /// As [`Subject::new`]; if the model cannot be split like that.
    pub fn of_rank(
        rank: usize,
        model: &Llama,
        recipe: &Recipe,
        base: Option<&Base>,
        limits: &Limits,
    ) -> Result<Subject> {
        let (specs, page) = (model.param_specs(), limits.max_buffer_bytes);
        let Some(config) = &recipe.lora else {
            let (optimizer, mesh) = (super::optimizer(recipe), recipe.mesh);
            let mut layout = if mesh.ranks() == mesh.replicas() && mesh.expert == 1 {
                optimizer.layout(specs, page)?
            } else {
                optimizer.layout_of(model.config().interleaved_parts(mesh, recipe.interleave, rank)?, page)?
            };
            if recipe.shards() > 1 {
                layout = optimizer.shared(layout, page, recipe.shard, mesh, rank);
            }
            return Ok(Subject { layout, adapted: None });
        };
        let frozen = match base {
            Some(base) => base.checkpoint.frozen_as(config.base_dtype)?,
            None => config.base_dtype.frozen(&specs),
        };
        let optimizer = super::optimizer(recipe);
        let (frozen, lora) = if recipe.mesh.ranks() == recipe.mesh.replicas() && recipe.mesh.expert == 1 {
            (frozen, Lora::new(config, &specs, page)?)
        } else {
            let parts = model.config().interleaved_parts(recipe.mesh, recipe.interleave, rank)?;
            check_blocks(&frozen, &parts)?;
            let lora = Lora::of_parts(config, &parts, page)?;
            (frozen.in_parts(parts), lora)
        };
        let lora = lora.laid_out(&|layout| match layout.parts() {
            Some(parts) => optimizer.layout_of(parts.clone(), page),
            None => optimizer.layout(layout.specs().to_vec(), page),
        })?;
        Ok(Subject { layout: lora.layout().clone(), adapted: Some(Adapted { base: frozen, lora: Some(lora) }) })
    }

    /// Refuses parameters of which one fits no buffer, before graphs are made of them: of thousands of pieces, each of which a
    /// binding holds, that takes minutes.
    ///
    /// # Errors
    /// If so, by its name, and with what would help.
    pub fn check_pages(&self, limits: &Limits) -> Result<()> {
        let fits = |name: &str, bytes: u64| {
            // What is looked at may itself be one rank's part.
            let (times, is_expert) = (bytes.div_ceil(limits.max_buffer_bytes), name.contains(".experts."));
            let axes = if is_expert { "expert or the tensor" } else { "tensor" };
            let advice = format!(
                "{times} times as many ranks at least must have a part of it each, by the {axes} axis of --mesh, or choose a smaller model"
            );
            fits_buffer(name, bytes, limits, &advice)
        };
        let frozen = self.adapted.as_ref().map(|adapted| &adapted.base);
        frozen
            .into_iter()
            .flat_map(|base| (0..base.params().len()).map(|i| base.place(i)))
            .try_for_each(|(name, bytes, _)| fits(name, bytes))?;
        let specs = self.layout.specs();
        self.layout.pages().iter().try_for_each(|page| fits(&specs[page.params.start].name, 4 * page.elements as u64))
    }

    /// The adapters, where only they are trained.
    pub fn lora(&self) -> Option<&Lora> {
        self.adapted.as_ref()?.lora.as_ref()
    }

    fn declared(&self) -> &dyn Declare {
        self.adapted.as_ref().map_or(&self.layout, |adapted| adapted)
    }

    /// The model as validation and samples see it: with nothing left out.
    pub fn whole(&self) -> Arc<dyn Declare> {
        match &self.adapted {
            None => Arc::new(self.layout.clone()),
            Some(Adapted { base, lora }) => {
                Arc::new(Adapted { base: base.clone(), lora: lora.as_ref().map(Lora::whole) })
            }
        }
    }

    /// One sentence about what is trained and what is not, where that is not all.
    pub fn note(&self, config: &ModelConfig) -> Option<String> {
        let (adapted, lora) = (self.adapted.as_ref()?, self.lora()?.all());
        let (own, all) = (lora.layout().parameters() as f64, config.parameters() as f64);
        Some(format!(
            "{:.2} M parameters of adapters in {} layers are trained, {:.2} % of the model's {:.2} M, which stay as they are \
             and take {}{}",
            own / 1e6,
            lora.modules().len(),
            100.0 * own / all,
            all / 1e6,
            crate::compile::human_bytes(adapted.base.bytes()),
            if self.layout.parts().is_some() { " on the first rank" } else { "" },
        ))
    }
}

impl Declare for Subject {
    fn declare(&self, g: &mut Graph) -> Result<Params> {
        self.declared().declare(g)
    }

    fn parts(&self) -> Option<&Parts> {
        self.declared().parts()
    }

    fn declare_whole(&self, g: &mut Graph) -> Result<Params> {
        self.declared().declare_whole(g)
    }

    fn only(&self, axes: &[Axis]) -> Option<Box<dyn Declare>> {
        self.declared().only(axes)
    }

    fn held(&self, name: &str) -> Option<&Held> {
        self.declared().held(name)
    }
}

/// Refuses a rank's parts of frozen parameters that are no whole blocks of their dtype.
fn check_blocks(frozen: &Frozen, parts: &Parts) -> Result<()> {
    for (name, ty) in frozen.params().iter().filter(|(name, _)| parts.has(name)) {
        let (columns, block) = (parts.held(name).shape(&ty.shape, parts.mesh).last(), ty.dtype.block().elements);
        if !columns.is_multiple_of(block) {
            return Err(Error::Invalid(format!(
                "{name} is held in {}, in blocks of {block} elements, and a rank would have {columns} columns of it, which are no \
                 whole blocks; choose fewer ranks along the tensor axis, or another lora.base_dtype, such as bf16",
                ty.dtype
            )));
        }
    }
    Ok(())
}
