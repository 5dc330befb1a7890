//! Reads the rotary embedding from a config.json, in the form of `transformers` 4 (`rope_theta`, `rope_scaling`) and of
//! version 5 (`rope_parameters`).

use super::family::Family;
use super::keys::Keys;
use super::rope::{RopeConfig, RopeScaling};
use crate::error::Result;

/// Kinds of scaling that we compute.
const KINDS: &str = "default, linear, dynamic, llama3, yarn, longrope";

/// Sizes that scaling depends on.
pub(super) struct Sizes {
    pub head_dim: usize,
    pub max_positions: usize,
}

pub(super) fn rope(keys: &Keys, family: &Family, sizes: &Sizes) -> Result<RopeConfig> {
    // Where both are given, the older counts, as in `transformers`.
    let (old, new) = (keys.within("rope_scaling")?, keys.within("rope_parameters")?);
    let inner = old.as_ref().filter(|old| !old.map.is_empty()).or(new.as_ref());
    let theta_of =
        |k: &Option<Keys>| k.as_ref().and_then(|k| k.get("rope_theta").map(|v| k.positive_value("rope_theta", v)));
    let theta = match theta_of(&old).or_else(|| theta_of(&new)) {
        Some(theta) => theta?,
        None => keys.positive("rope_theta", family.defaults.rope_theta)?,
    };
    let share = match inner.filter(|inner| inner.get("partial_rotary_factor").is_some()) {
        Some(inner) => inner.positive("partial_rotary_factor", 1.0)?,
        None => keys.positive("partial_rotary_factor", 1.0)?,
    };
    let width = (sizes.head_dim as f64 * share) as usize;
    if share > 1.0 || width < 2 || !width.is_multiple_of(2) {
        let what = format!("it must make an even number of the {} elements of a head turn", sizes.head_dim);
        return Err(keys.refuse("partial_rotary_factor", &share.into(), what));
    }
    let scaling = match inner {
        None => RopeScaling::Default,
        Some(inner) => scaling(keys, inner, family, sizes, width)?,
    };
    Ok(RopeConfig { theta, width, scaling })
}

fn scaling(keys: &Keys, inner: &Keys, family: &Family, sizes: &Sizes, width: usize) -> Result<RopeScaling> {
    if let Some((key, value)) = inner.map.iter().find(|(_, value)| value.is_object()) {
        return Err(inner.refuse(key, value, "only one rotary embedding for all layers is known"));
    }
    let kind = inner.get("rope_type").or_else(|| inner.get("type"));
    let Some(kind) = kind else {
        return match inner.get("factor") {
            Some(_) => Err(inner.missing("rope_type", &format!("one of {KINDS}"))),
            None => Ok(RopeScaling::Default),
        };
    };
    // Phi-3's first folders say "su" or "yarn" for what became longrope.
    let old_phi = family.model_type == "phi3" && (kind == "su" || kind == "yarn");
    match kind.as_str().map(|kind| if old_phi { "longrope" } else { kind }) {
        Some("default") => Ok(RopeScaling::Default),
        Some("linear") => Ok(RopeScaling::Linear { factor: inner.number("factor")? }),
        Some("dynamic" | "ntk") => Ok(RopeScaling::Dynamic { factor: inner.number("factor")? }),
        Some("llama3") => llama3(keys, inner, sizes),
        Some("yarn") => yarn(keys, inner, sizes),
        Some("longrope") => long(keys, inner, family, sizes, width),
        _ => Err(inner.refuse("rope_type", kind, format!("this scaling of positions is not known; known: {KINDS}"))),
    }
}

/// The context of pre-training. A key outside goes before the one inside, as in `transformers`.
fn original(keys: &Keys, inner: &Keys, default: usize) -> Result<usize> {
    const KEY: &str = "original_max_position_embeddings";
    let from = if keys.get(KEY).is_some() { keys } else { inner };
    from.size_up_to(KEY, Some(default), 1 << 24)
}

fn llama3(keys: &Keys, inner: &Keys, sizes: &Sizes) -> Result<RopeScaling> {
    let (low, high) = (inner.number("low_freq_factor")?, inner.number("high_freq_factor")?);
    if high <= low {
        let what = format!("it must be above \"low_freq_factor\" = {low}");
        return Err(inner.refuse("high_freq_factor", &high.into(), what));
    }
    let original = original(keys, inner, sizes.max_positions)?;
    Ok(RopeScaling::Llama3 { factor: inner.number("factor")?, low, high, original })
}

fn yarn(keys: &Keys, inner: &Keys, sizes: &Sizes) -> Result<RopeScaling> {
    let original = original(keys, inner, sizes.max_positions)?;
    let factor = inner.positive("factor", sizes.max_positions as f64 / original as f64)?;
    let strength = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let attention = match (inner.get("mscale"), inner.get("mscale_all_dim")) {
        (Some(one), Some(all)) if one.as_f64() != Some(0.0) && all.as_f64() != Some(0.0) => {
            strength(inner.positive("mscale", 1.0)?) / strength(inner.positive("mscale_all_dim", 1.0)?)
        }
        _ => strength(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        original,
        fast: inner.positive("beta_fast", 32.0)?,
        slow: inner.positive("beta_slow", 1.0)?,
        truncate: inner.flag("truncate", true)?,
        attention: inner.positive("attention_factor", attention)?,
    })
}

fn long(keys: &Keys, inner: &Keys, family: &Family, sizes: &Sizes, width: usize) -> Result<RopeScaling> {
    let default = if family.model_type == "phi3" { family.defaults.max_positions } else { sizes.max_positions };
    let original = original(keys, inner, default)?;
    let factor = inner.positive("factor", sizes.max_positions as f64 / original as f64)?;
    let attention = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
    Ok(RopeScaling::Long {
        short: inner.numbers("short_factor", width / 2)?,
        long: inner.numbers("long_factor", width / 2)?,
        original,
        attention: inner.positive("attention_factor", attention)?,
    })
}
