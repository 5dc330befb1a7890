//! Frequencies against those of `transformers`, which `tests/goldens/families.py` wrote.

use crate::model::ModelConfig;
use crate::model::rotary_share;
use serde_json::Value;
use std::path::Path;

/// `transformers` computes in f32: it rounds the exponent -2i/R, which the logarithm of the base (21 at most here) makes a
/// relative error of the power, and then a few results.
const BAR: f64 = (21.0 + 11.0) * 0.5 * f32::EPSILON as f64;

#[test]
fn frequencies_are_those_of_transformers() {
    let rows: Vec<Value> = serde_json::from_str(include_str!("../../tests/goldens/rope.json")).unwrap();
    assert_eq!(rows.len(), 13);
    for row in rows {
        let config = ModelConfig::from_map(row["config"].as_object().unwrap(), Path::new("rope.json")).unwrap();
        let planned = row["planned"].as_u64().unwrap() as usize;
        let got = config.frequencies(planned);
        let expected: Vec<f64> = row["inverse"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(got.inverse.len(), expected.len(), "{:?}", config.rope);
        for (i, (a, b)) in got.inverse.iter().zip(&expected).enumerate() {
            assert!((a - b).abs() <= BAR * b, "{:?} for {planned}, pair {i}: {a}, transformers has {b}", config.rope);
        }
        assert!((got.attention - row["attention"].as_f64().unwrap()).abs() < 1e-12, "{:?}", config.rope);
        // Training takes those of its longest rows for all of them.
        let turned = config.turned_for(planned);
        assert!([1, planned, 1 << 20].iter().all(|&length| turned.frequencies(length) == got), "{:?}", config.rope);
        // What is written reads the same.
        let again = ModelConfig::parse(&config.to_json(), Path::new("again.json")).unwrap();
        assert_eq!(again, config);
    }
}

#[test]
fn scaled_positions_reach_further() {
    let reach = |scaling: &str, trained: usize| {
        let text = format!(
            r#"{{"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 2, "max_position_embeddings": {trained}, "rope_scaling": {scaling}}}"#
        );
        ModelConfig::parse(&text, Path::new("c.json")).unwrap().max_context()
    };
    assert_eq!(reach("null", 100), 100);
    assert_eq!(reach(r#"{"type": "linear", "factor": 4}"#, 100), 400);
    assert_eq!(reach(r#"{"type": "dynamic", "factor": 2.5}"#, 100), 250);
    assert_eq!(reach(r#"{"type": "yarn", "factor": 4, "original_max_position_embeddings": 100}"#, 100), 400);
    assert_eq!(reach(r#"{"type": "yarn", "factor": 4, "original_max_position_embeddings": 25}"#, 100), 100);
}

/// 30 of 44 is 29.999999999999996 if the quotient is taken as it is.
#[test]
fn a_share_of_a_head_turns_as_many_elements_as_it_was_made_of() {
    for width in (4..=256).step_by(4) {
        for turned in (2..=width).step_by(2) {
            let share = rotary_share(turned, width);
            assert_eq!((share * width as f64) as u64, turned, "{turned} of {width}");
            assert!(share <= 1.0 && (share - turned as f64 / width as f64).abs() < 1e-15);
        }
    }
}
