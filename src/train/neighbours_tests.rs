//! What a rank does where its neighbour lists what cannot be.

use super::super::folder::begin;
use super::*;
use crate::comm::LocalComm;
use std::sync::Arc;

/// Rank 0 gives a part of one file, and rank 1 lists `theirs` and does then what it does; gives what both say.
fn exchanged(theirs: &[u8], then: impl Fn(&LocalComm) -> Result<()> + Sync) -> [Result<()>; 2] {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own");
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("states"), b"12345").unwrap();
    let copies = Neighbours { series: Series::at(&folder.path().join("copies")), place: "copies".into() };
    let mut group = LocalComm::group(2, None).into_iter();
    let (first, second) = (group.next().unwrap(), group.next().unwrap());
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let world = World::of(Arc::new(first));
            copies.exchange(&world, &own, 7)
        });
        let talk = || {
            second.send(0, &(theirs.len() as u64).to_le_bytes())?;
            second.send(0, theirs)?;
            let mut length = [0; 8];
            second.receive(0, &mut length)?;
            second.receive(0, &mut vec![0; u64::from_le_bytes(length) as usize])?;
            let mut piece = [0; 5];
            second.receive(0, &mut piece)?;
            assert_eq!(&piece, b"12345");
            then(&second)
        };
        let said = talk();
        assert!(!folder.path().join("states").exists() && !folder.path().join("copies/rank-1/step-7").exists());
        [first.join().unwrap(), said]
    })
}

#[test]
fn nobody_waits_for_a_rank_whose_neighbour_lists_nonsense() {
    // What follows a list that cannot be read nobody knows: both hear why it ends.
    let [own, theirs] = exchanged(b"no list", |_| panic!("there is no piece for it"));
    assert!(own.unwrap_err().to_string().contains("what rank 1 lists cannot be read"));
    assert!(theirs.unwrap_err().to_string().contains("what rank 1 lists cannot be read"));
    // Of one that leads elsewhere all pieces are taken, and given.
    let list = serde_json::to_vec(&[("../states", 3u64)]).unwrap();
    let [own, theirs] = exchanged(&list, |comm| comm.send(0, b"abc"));
    assert!(own.unwrap_err().to_string().contains("rank 1 lists a file that leads elsewhere"));
    theirs.unwrap();
}

#[test]
fn copies_are_of_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = Recipe { out: folder.path().join("m"), ..Recipe::default() };
    recipe.checkpoint.neighbour_copies = Some(folder.path().join("copies"));
    let kept = |out: &str| {
        let (recipe, out) = (Recipe { out: folder.path().join(out), ..recipe.clone() }, folder.path().join(out));
        // What is no id names no folder.
        fs::create_dir_all(&out).unwrap();
        fs::write(out.join(".run"), "../../elsewhere!").unwrap();
        assert_eq!(RunId::read(&out), None);
        let (_, _, run) = begin(&recipe, 0, 0).unwrap();
        assert_eq!(RunId::read(&out).as_ref(), Some(&run));
        assert_eq!(begin(&recipe, 1, 0).unwrap().2, run, "it goes on");
        let copies = Neighbours::of(&recipe, &run).unwrap();
        fs::create_dir_all(copies.series.step(1)).unwrap();
        fs::create_dir_all(copies.series.part(1).step(2)).unwrap();
        copies
    };
    // One after another in the same place, and one elsewhere.
    let (before, after, other) = (kept("m"), kept("m"), kept("n"));
    after.forget_after(1);
    assert!(before.series.folder().exists());
    // Without an id nobody knows which of them are the run's own.
    let out = folder.path().join("m");
    let said = || {
        let mut said = Vec::new();
        put_back(&out, &mut |text| said.push(text)).unwrap();
        said
    };
    assert!(said().is_empty());
    fs::remove_file(out.join(RUN)).unwrap();
    let said = said().join("\n");
    for (copies, is_named) in [(&before, true), (&after, true), (&other, false)] {
        assert_eq!(said.contains(&copies.series.folder().display().to_string()), is_named, "{said}");
    }
    after.forget_others();
    assert!(!before.series.folder().exists() && other.series.part(1).step(2).exists());
    assert!(after.series.step(1).exists() && !after.series.part(1).step(2).exists());
    after.remove(&World::alone()).unwrap();
    assert!(!after.series.folder().exists() && other.series.step(1).exists());
}
