//! The parameters behind the rotary factors that GGUF stores in place of them.

use serde_json::{Value, json};

/// Rotary scaling of Llama 3.1 and its kin (`rope_freqs.weight`): the factor of each frequency comes from four numbers,
/// of which all published models share three. If those give just these factors, they are the answer; else the factors
/// themselves, as a scaling that has them for short and long texts alike.
pub(super) fn llama3(factors: &[f32], theta: f64, context: u64) -> Value {
    let (low, high, original) = (1.0, 4.0, 8192.0);
    let factor = f64::from(factors.last().copied().unwrap_or(1.0));
    let count = factors.len();
    let expected = |i: usize| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(i as f64 / count as f64);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    // Stored in f32, computed in f32 by whoever converted the model.
    let same = |(i, &f): (usize, &f32)| (expected(i) - f64::from(f)).abs() <= 1e-5 * f64::from(f);
    if factors.iter().enumerate().all(same) {
        return json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original as u64,
        });
    }
    json!({
        "rope_type": "longrope", "long_factor": factors, "short_factor": factors, "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    })
}
