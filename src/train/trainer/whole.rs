//! The whole of a model of which ranks have parts.

use super::Trainer;
use crate::error::Result;
use crate::nn::{Adapted, PARAMETERS, Parts};
use crate::train::Subject;
use crate::train::axes::To;

impl Trainer {
    /// Whether no rank has all that is shown: who wants it whole asks all ranks for [`Trainer::whole`], or
    /// [`Trainer::whole_on_first`].
    pub fn is_in_parts(&self) -> bool {
        let averages = self.shards > 1 && self.optimizer.ema > 0.0;
        self.layout().parts().is_some() || self.layout().keeps_parts() || averages
    }

    /// Whether the first rank's host has room for all that is trained, where ranks have parts of it; all of them call this together.
    ///
    /// # Errors
    /// Those of the communicator.
    pub fn has_room(&self) -> Result<bool> {
        if !self.is_in_parts() {
            return Ok(true);
        }
        let of = |parts: &Parts| parts.whole().iter().map(|spec| spec.shape.elements() as u64).sum();
        let parameters = self.layout().parts().map_or(self.layout().parameters(), of);
        let has = || (self.host_memory)().is_none_or(|free| 4 * parameters <= free);
        self.world.first(self.world.is_first().then(|| Ok(has())))
    }

    /// Of the parameters that are trained those that this rank holds; where ranks share them out, with what fills up its part.
    pub fn held(&self) -> u64 {
        let (layout, kept) = (self.layout(), |page| self.layout().kept(page).len() as u64);
        if layout.keeps_parts() { (0..layout.pages().len()).map(kept).sum() } else { layout.parameters() }
    }

    /// What is trained, as it is validated, in the layout's pages; where ranks share that out, all of them call this together.
    ///
    /// # Errors
    /// If the device failed; those of the communicator.
    pub async fn pages(&self) -> Result<Vec<Vec<f32>>> {
        self.pages_on(To::All).await
    }

    /// Those of a rank that is to have them; others' are empty where none has all of them.
    async fn pages_on(&self, to: To) -> Result<Vec<Vec<f32>>> {
        let mut pages = Vec::new();
        for (i, page) in self.layout().pages().iter().enumerate() {
            let own = self.shown.read(&format!("{PARAMETERS}.{i}")).await?;
            let page = self.axes.page(own, 4 * page.elements, self.layout().sharers_of(i), to)?;
            pages.push(bytemuck::pod_collect_to_vec(&page));
        }
        Ok(pages)
    }

    /// What is trained of the whole model, put together of all ranks' parts where each has some; all ranks call this together.
    ///
    /// # Errors
    /// As [`Trainer::pages`]; those of the communicator.
    pub async fn whole(&self) -> Result<(Subject, Vec<Vec<f32>>)> {
        self.whole_on(To::All).await
    }

    /// [`Trainer::whole`] on the first rank, and nothing on others: their hosts need have no room for it. Where ranks have
    /// parts of it, all of them call this together; else it is the first one's alone.
    ///
    /// # Errors
    /// As [`Trainer::whole`].
    pub async fn whole_on_first(&self) -> Result<Option<(Subject, Vec<Vec<f32>>)>> {
        if !self.world.is_first() && !self.is_in_parts() {
            return Ok(None);
        }
        let whole = self.whole_on(To::First).await?;
        Ok(self.world.is_first().then_some(whole))
    }

    async fn whole_on(&self, to: To) -> Result<(Subject, Vec<Vec<f32>>)> {
        let own = self.pages_on(to).await?;
        let Some(parts) = self.layout().parts() else { return Ok((self.subject.clone(), own)) };
        let adapted = self.subject.adapted.as_ref().map(Adapted::whole);
        let layout = match adapted.as_ref().and_then(|adapted| adapted.lora.as_ref()) {
            Some(lora) => lora.layout().clone(),
            None => self.optimizer.layout(parts.whole().to_vec(), u64::from(u32::MAX))?,
        };
        Ok(match self.axes.together(self.layout(), &own, &layout, to)? {
            Some(pages) => (Subject { layout, adapted }, pages),
            None => (self.subject.clone(), own),
        })
    }
}
