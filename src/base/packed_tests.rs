//! Blocks against what the gguf Python package makes of them (tests/goldens/blocks/make.py).

use super::{DType, packed};
use safetensors::SafeTensors;

const GOLDEN: &[u8] = include_bytes!("../../tests/goldens/blocks/golden.safetensors");

#[test]
fn blocks_mean_what_gguf_says() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    // NF4 is bitsandbytes' own.
    for dtype in DType::WEIGHTS.into_iter().filter(|d| d.is_packed() && *d != DType::Nf4) {
        let tensor = |what: &str| golden.tensor(&format!("{dtype}.{what}")).unwrap().data().to_vec();
        let expected: Vec<f32> =
            tensor("values").chunks_exact(4).map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
        let mut values = vec![0.0; expected.len()];
        packed::decode(dtype, &tensor("bytes"), &mut values);
        let size = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        assert!(size > 0.1, "{dtype}: {size}");
        for (i, (x, y)) in values.iter().zip(&expected).enumerate() {
            // Where a minimum is added, the two may round in another order.
            assert!((x - y).abs() <= 2.0 * f32::EPSILON * size, "{dtype}, element {i}: {x}, gguf says {y}");
        }
    }
}
