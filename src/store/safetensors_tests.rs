//! Round trips, and what is wrong in files of weights, one row a mistake.

use super::*;
use crate::model::Source;
use crate::nn::{Init, ParamSpec};
use crate::store::tensors::Tensors;
use crate::store::weights::Wanted;
use half::{bf16, f16};
use safetensors::Dtype;

type Tensor = (&'static str, Shape, Vec<f32>);

fn tensors() -> Vec<Tensor> {
    vec![("a", [2, 3].into(), (0..6).map(|i| i as f32 * 0.1).collect()), ("b", [1].into(), vec![-1.5e-30])]
}

fn write(path: &Path, tensors: &[Tensor]) {
    let rows: Vec<_> = tensors.iter().map(|(name, shape, data)| (*name, shape, data.as_slice())).collect();
    write_safetensors(path, &rows).unwrap();
}

fn read(path: &Path, wanted: &[(&'static str, Shape)]) -> Result<Vec<Vec<f32>>> {
    let spec = |(name, shape): &(&str, Shape)| {
        let (name, shape) = (name.to_string(), shape.clone());
        ParamSpec { name, shape, decay: true, init: Init::Ones }
    };
    let specs: Vec<ParamSpec> = wanted.iter().map(spec).collect();
    let tensors = Tensors::open_safetensors(path)?;
    let sources = |name: &str| vec![Source::whole(name)];
    let found = Wanted { sources: &sources, ignored: &|_| false, config: "config.json" };
    let values = tensors.find(&specs, &found)?.into_iter().map(|weight| {
        let mut data = vec![f32::NAN; weight.shape.elements()];
        weight.write(0..weight.rows(), DType::F32, bytemuck::cast_slice_mut(&mut data));
        data
    });
    Ok(values.collect())
}

fn wanted() -> Vec<(&'static str, Shape)> {
    tensors().into_iter().map(|(n, s, _)| (n, s)).collect()
}

#[test]
fn what_is_written_is_read_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write(&file, &tensors());
    assert_eq!(std::fs::read(&file).unwrap().len() % 4, 0);
    let expected: Vec<Vec<f32>> = tensors().into_iter().map(|(.., d)| d).collect();
    assert_eq!(read(&file, &wanted()).unwrap(), expected);
    assert_eq!(read(folder.path(), &wanted()).unwrap(), expected);
}

#[test]
fn shards_and_narrow_dtypes() {
    let folder = tempfile::tempdir().unwrap();
    let narrow = |name: &str, dtype, bytes: Vec<u8>| {
        let view = safetensors::tensor::TensorView::new(dtype, vec![2], &bytes).unwrap();
        let file = safetensors::serialize([(name, view)], None).unwrap();
        std::fs::write(folder.path().join(format!("{name}.safetensors")), file).unwrap();
    };
    narrow("h", Dtype::F16, [f16::from_f32(1.5), f16::from_f32(-0.25)].iter().flat_map(|x| x.to_le_bytes()).collect());
    narrow(
        "w",
        Dtype::BF16,
        [bf16::from_f32(3.0), bf16::from_f32(1e30)].iter().flat_map(|x| x.to_le_bytes()).collect(),
    );
    let index = r#"{"weight_map": {"h": "h.safetensors", "w": "w.safetensors"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let read = read(folder.path(), &[("w", [2].into()), ("h", [2].into())]).unwrap();
    assert_eq!(read, [vec![3.0, bf16::from_f32(1e30).to_f32()], vec![1.5, -0.25]]);
}

#[test]
fn every_mistake_has_its_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.safetensors");
    write(&file, &tensors());
    let rows: [(&[(&'static str, Shape)], &str); 4] = [
        (
            &[("a", [2, 3].into()), ("b", [1].into()), ("c", [1].into()), ("d", [1].into())],
            "lacks tensor c and 1 more; these are not the weights of this config.json",
        ),
        (&[("a", [2, 3].into())], "holds more than the model has: tensor b; this config.json describes another model"),
        (
            &[("a", [3, 2].into()), ("b", [1].into())],
            "tensor a is [2,3] where config.json says [3,2]; one of the two is wrong",
        ),
        (
            &[("a", [6].into()), ("b", [1].into())],
            "tensor a is [2,3] where config.json says [6]; one of the two is wrong",
        ),
    ];
    for (wanted, message) in rows {
        assert_eq!(read(&file, wanted).unwrap_err().to_string(), format!("{}: {message}", file.display()));
    }
    let view = safetensors::tensor::TensorView::new(Dtype::I64, vec![1], &[0; 8]).unwrap();
    std::fs::write(&file, safetensors::serialize([("a", view)], None).unwrap()).unwrap();
    let message = read(&file, &[("a", [1].into())]).unwrap_err().to_string();
    assert!(message.ends_with("tensor a at byte 64 is I64; only these can be read: f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k"), "{message}");
    let message = Tensors::open_safetensors(folder.path()).unwrap_err().to_string();
    assert!(message.ends_with("holds neither model.safetensors nor model.safetensors.index.json"), "{message}");
}

#[test]
fn torn_files_are_refused_at_every_length() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.safetensors");
    write(&file, &tensors());
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, "").unwrap();
    let message = read(&file, &wanted()).expect_err("an empty file").to_string();
    assert!(message.ends_with("is empty, it has 0 bytes: nothing of it has arrived; fetch it again"), "{message}");
    for length in 1..whole.len() {
        std::fs::write(&file, &whole[..length]).unwrap();
        let message = read(&file, &wanted()).expect_err("a torn file").to_string();
        assert!(message.contains("is not a whole safetensors file ("), "{length} bytes: {message}");
        assert!(message.ends_with("it was cut off or damaged: fetch it again"), "{length} bytes: {message}");
    }
}

#[test]
fn an_index_cannot_reach_out_of_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    for (text, why) in [
        (r#"{"weight_map": {"a": "../a.safetensors"}}"#, "(a lies in \"../a.safetensors\")"),
        (r#"{"weight_map": {"a": "sub/a.safetensors"}}"#, "(a lies in \"sub/a.safetensors\")"),
        (r#"{"weight_map": {"a": "sub\\a.safetensors"}}"#, "(a lies in \"sub\\\\a.safetensors\")"),
        (r#"{"weight_map": {"a": ".."}}"#, "(a lies in \"..\")"),
        (r#"{"weight_map": {"a": 5}}"#, "(a lies in 5)"),
        (r#"{}"#, "(\"weight_map\" is missing)"),
    ] {
        std::fs::write(&index, text).unwrap();
        let message = Tensors::open_safetensors(folder.path()).unwrap_err().to_string();
        assert_eq!(message, format!("{}: is not an index of shards {why}; download it again", index.display()));
    }
    std::fs::write(&index, r#"{"weight_map": {"a": "a.safetensors"}}"#).unwrap();
    let message = Tensors::open_safetensors(folder.path()).unwrap_err().to_string();
    let missing = "is not there: model.safetensors.index.json names it; fetch it too";
    assert_eq!(message, format!("{}: {missing}", folder.path().join("a.safetensors").display()));
    // What it says of a tensor must be so.
    for name in ["x", "y"] {
        write(&folder.path().join(format!("{name}.safetensors")), &[(name, [1].into(), vec![0.0])]);
    }
    for (map, lies) in [
        (r#"{"x": "x.safetensors", "y": "x.safetensors"}"#, Some("in none of the files")),
        (r#"{"x": "y.safetensors", "y": "x.safetensors"}"#, Some("in x.safetensors")),
        (r#"{"x": "x.safetensors", "y": "y.safetensors", "l.0.rotary_emb.inv_freq": "x.safetensors"}"#, None),
    ] {
        std::fs::write(&index, format!(r#"{{"weight_map": {map}}}"#)).unwrap();
        let opened = Tensors::open_safetensors(folder.path()).map(drop).map_err(|e| e.to_string());
        match lies {
            None => assert_eq!(opened, Ok(())),
            Some(lies) => {
                let message = opened.unwrap_err();
                assert!(message.ends_with(&format!(", and it lies {lies}; fetch index and files again")), "{message}");
            }
        }
    }
}
