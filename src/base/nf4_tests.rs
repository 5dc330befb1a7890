//! NF4 against what bitsandbytes makes of the same weights (tests/goldens/nf4/make.py).

use super::{DType, nf4, packed, quantise};
use half::f16;
use safetensors::SafeTensors;

const GOLDEN: &[u8] = include_bytes!("../../tests/goldens/nf4/golden.safetensors");

fn golden(name: &str) -> Vec<u8> {
    SafeTensors::deserialize(GOLDEN).unwrap().tensor(name).unwrap().data().to_vec()
}

fn f32s(name: &str) -> Vec<f32> {
    golden(name).chunks_exact(4).map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn weights_are_quantised_and_back_as_by_bitsandbytes_to_the_bit() {
    assert_eq!(bits(nf4::dynamic_code()), bits(&f32s("code")));
    let weights: Vec<f32> =
        golden("weights").chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
    let scales: Vec<f32> = nf4::scales(&weights).collect();
    assert!(scales.len() > 256 && scales.contains(&0.0));
    // From here on nothing is bitsandbytes': of these scales its sum, in whatever order, rounds to the same mean.
    let mean = nf4::mean(&scales);
    assert_eq!(bits(&[mean]), bits(&f32s("mean")));
    let scales = nf4::quantised(&scales, mean);
    assert_eq!(bits(&scales), bits(&f32s("scales")));
    let mut blocks = vec![0; DType::Nf4.file_size(weights.len()) as usize];
    nf4::encode(&weights, &scales, &mut blocks);
    let quants: Vec<u8> = blocks.chunks_exact(36).flat_map(|b| b[4..].to_vec()).collect();
    assert!(quants == golden("quants"));
    let mut values = vec![0.0; weights.len()];
    packed::decode(DType::Nf4, &blocks, &mut values);
    assert!(bits(&values) == bits(&f32s("values")));
    assert!(!quantise::ENCODED.contains(&DType::Nf4), "its scales are those of a whole tensor");
}
