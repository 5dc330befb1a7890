//! Training checkpoints: round trips, every kind of damage, what is kept.

use super::*;
use crate::store::atomic::temporary;
use crate::store::staged_folder::tests::names;
use serde_json::json;
use std::fs;
use std::path::Path;

fn states() -> Vec<(StateSize, Vec<u8>)> {
    [("param.0", 4000), ("adam_m.0", 4000), ("scaler", 20)]
        .into_iter()
        .map(|(name, bytes): (&str, u64)| {
            let content = (0..bytes).map(|i| (i * 7 + name.len() as u64) as u8).collect();
            (StateSize::whole(name, bytes), content)
        })
        .collect()
}

/// A checkpoint whose files hold 1,500 bytes of states each, pushed in pieces that fit nothing.
fn write(folder: &Path, step: u64, validation: Option<f64>) -> std::path::PathBuf {
    let states = states();
    let sizes = states.iter().map(|(size, _)| size.clone()).collect();
    let manifest = Manifest::new(step, validation, json!({"rate": 0.1}), sizes);
    let mut writer = SnapshotWriter::new(folder, manifest, 1500).unwrap();
    let bytes: Vec<u8> = states.into_iter().flat_map(|(_, bytes)| bytes).collect();
    bytes.chunks(1234).for_each(|piece| writer.push(piece).unwrap());
    writer.finish().unwrap()
}

#[test]
fn every_byte_comes_back() {
    let run = tempfile::tempdir().unwrap();
    let series = Series::of(run.path());
    let folder = write(series.folder(), 7, Some(2.5));
    assert_eq!(names(run.path()), ["checkpoints"]);
    assert_eq!(names(&folder).len(), 6 + 2, "{:?}", names(&folder));
    let snapshot = series.newest(&mut |_, error| panic!("{error}")).unwrap();
    assert_eq!((snapshot.manifest().step, snapshot.manifest().validation), (7, Some(2.5)));
    assert_eq!(snapshot.manifest().run["rate"], 0.1);
    for (size, bytes) in states() {
        let mut found = vec![0; bytes.len()];
        snapshot.read(&size.name, 0, &mut found).unwrap();
        assert!(found == bytes, "{}", size.name);
    }
    // Other programs open the files too.
    let bytes = fs::read(folder.join("states-00001-of-00006.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("param.0@0").unwrap().data(), &states()[0].1[..1500]);
    let bytes = fs::read(folder.join("states-00006-of-00006.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert!(file.len() == 2 && file.tensor("adam_m.0@3500").is_ok() && file.tensor("scaler").is_ok());
}

#[test]
fn any_damage_is_found_and_the_one_before_is_used() {
    let run = tempfile::tempdir().unwrap();
    let series = Series::of(run.path());
    write(series.folder(), 3, None);
    let folder = write(series.folder(), 7, None);
    let damage = |name: &str, change: &dyn Fn(&mut Vec<u8>), part: &str| {
        let path = folder.join(name);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let mut said = Vec::new();
        let used = series.newest(&mut |step, error| said.push((step, error.to_string()))).unwrap();
        assert_eq!(used.manifest().step, 3, "{name}");
        assert!(said.len() == 1 && said[0].0 == 7 && said[0].1.contains(part), "{part}: {said:?}");
        fs::write(&path, whole).unwrap();
        assert_eq!(series.newest(&mut |_, error| panic!("{error}")).unwrap().manifest().step, 7);
    };
    let all = names(&folder);
    for name in &all {
        let length = fs::metadata(folder.join(name)).unwrap().len() as usize;
        // A bit in every part of every file, whatever it is.
        for at in (0..length).step_by(length.div_ceil(23)).chain([length - 1]) {
            let part =
                if name.starts_with("manifest") { "manifest.json: is damaged: its SHA-256 is" } else { "SHA-256" };
            // The sum's own file must be text to be compared at all.
            damage(name, &|bytes| bytes[at] ^= 1 << (at % 7), part);
        }
        let part = if name.starts_with("manifest") { "is damaged" } else { "is cut short or grown" };
        damage(name, &|bytes| bytes.truncate(length / 2), part);
        damage(name, &|bytes| bytes.clear(), part);
        damage(name, &|bytes| bytes.push(b'x'), part);
    }
    for name in &all {
        fs::rename(folder.join(name), run.path().join("aside")).unwrap();
        let mut said = Vec::new();
        let used = series.newest(&mut |_, error| said.push(error.to_string())).unwrap();
        assert!(used.manifest().step == 3 && said[0].contains(name.as_str()), "{said:?}");
        fs::rename(run.path().join("aside"), folder.join(name)).unwrap();
    }
    assert!(Series::of(&run.path().join("elsewhere")).newest(&mut |_, _| ()).is_none());
}

/// Of a checkpoint in parts each is compared, not the first rank's alone.
#[test]
fn a_damaged_part_of_any_rank_is_found() {
    let run = tempfile::tempdir().unwrap();
    let series = Series::of(run.path());
    let sizes: Vec<StateSize> = states().into_iter().map(|(size, _)| size).collect();
    for rank in [1, 0] {
        let manifest = Manifest { parts: 2, ..Manifest::new(7, None, json!(null), sizes.clone()) };
        let mut writer = SnapshotWriter::new(series.part(rank).folder(), manifest, 1500).unwrap();
        states().iter().for_each(|(_, bytes)| writer.push(bytes).unwrap());
        writer.finish().unwrap();
    }
    assert_eq!(series.whole(7).unwrap().manifest().parts, 2);
    let file = series.part(1).step(7).join("states-00002-of-00006.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let said = series.whole(7).unwrap_err().to_string();
    assert!(said.contains("rank-1") && said.contains("is damaged"), "{said}");
    assert!(series.whole(8).is_err() && series.newest(&mut |_, _| ()).is_none());
}

#[test]
fn the_last_and_the_best_stay() {
    let run = tempfile::tempdir().unwrap();
    let series = Series::of(run.path());
    let steps = || series.list().into_iter().map(|(step, _)| step).collect::<Vec<_>>();
    for (step, validation) in [(2, Some(3.0)), (4, Some(1.0)), (10, Some(2.0)), (100, None), (20, Some(1.0))] {
        write(series.folder(), step, validation);
    }
    assert_eq!(steps(), [2, 4, 10, 20, 100]);
    series.retain(2, true);
    assert_eq!(steps(), [4, 20, 100], "the earlier of the two best stays");
    series.retain(2, false);
    assert_eq!(steps(), [20, 100]);
    write(series.folder(), 20, None);
    series.forget_after(20);
    assert_eq!(steps(), [20]);
    series.retain(0, false);
    assert_eq!(steps(), [20], "never none");
    series.clear().unwrap();
    assert_eq!(names(series.folder()), [""; 0]);
}

#[test]
fn what_is_not_finished_leaves_nothing() {
    let run = tempfile::tempdir().unwrap();
    let series = Series::of(run.path());
    let sizes: Vec<StateSize> = states().into_iter().map(|(size, _)| size).collect();
    let begin = || SnapshotWriter::new(series.folder(), Manifest::new(5, None, json!(null), sizes.clone()), 1500);
    let mut writer = begin().unwrap();
    writer.push(&[1; 2000]).unwrap();
    assert!(names(series.folder())[0].starts_with("step-5.") && series.list().is_empty());
    drop(writer);
    assert_eq!(names(series.folder()), [""; 0]);
    let mut writer = begin().unwrap();
    writer.push(&[1; 2000]).unwrap();
    assert_eq!(writer.finish().unwrap_err().to_string(), "graph: fewer bytes than the states have");
    assert_eq!(begin().unwrap().push(&[1; 9000]).unwrap_err().to_string(), "graph: more bytes than the states have");
    // What a killed process left goes when the series is opened.
    for part in [series.clone(), series.part(1)] {
        let own = temporary(&part.step(9)).unwrap();
        let dead = own.to_str().unwrap().replace(&format!("-{}.tmp", std::process::id()), "-4294967294.tmp");
        fs::create_dir_all(dead).unwrap();
    }
    let swept = cfg!(target_os = "linux");
    let left = |series: &Series| names(series.folder()).iter().filter(|name| name.starts_with("step-9")).count();
    assert!(Series::below(run.path()).newest(&mut |_, _| ()).is_none());
    assert_eq!([left(&series), left(&series.part(1))], [1, 1], "who only reads changes nothing");
    Series::of(run.path());
    assert_eq!([left(&series), left(&series.part(1))], if swept { [0, 0] } else { [1, 1] });
    // More than any disk has.
    let huge = vec![StateSize::whole("param.0", 1 << 60)];
    let error = SnapshotWriter::new(series.folder(), Manifest::new(5, None, json!(null), huge), 1500).err().unwrap();
    let said = error.to_string();
    assert!(
        said.contains("step-5: cannot be saved, the disk is nearly full: ") && said.contains("are free;"),
        "{said}"
    );
}
