//! What is there, or on its way, is not downloaded again.

use super::*;

/// What another process is downloading is waited for, such as another rank of the same run; and what another commit had is not asked
/// for again.
#[test]
fn nothing_comes_twice() {
    let place = Place::new();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(|| place.fetch("org/model"))).collect();
        all.into_iter().for_each(|one| drop(one.join().unwrap().unwrap()));
    });
    assert_eq!(place.ranges().len(), 1);
    fs::remove_dir_all(place.repository().join("snapshots")).unwrap();
    let folder = place.fetch("org/model").unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert_eq!(place.ranges(), [""; 0]);
}

#[test]
fn a_later_run_takes_up_what_an_earlier_one_left() {
    let place = Place::new();
    place.fetch("org/model").unwrap();
    let (blob, folder) = (place.blob(&sha256(&weights())), place.repository().join("snapshots").join(COMMIT));
    let part = blob.with_extension("part");
    let left = |content: &[u8]| {
        let _ = fs::remove_file(&blob);
        fs::remove_file(folder.join("model.safetensors")).unwrap();
        fs::write(&part, content).unwrap();
        place.hub.requests();
    };
    let whole = || fs::read(place.fetch("org/model").unwrap().join("model.safetensors")).unwrap();

    left(&weights()[..700_000]);
    assert!(whole() == weights());
    assert_eq!(place.ranges(), ["bytes=700000-"]);

    // Cut again at once, after nothing.
    left(&weights()[..700_000]);
    place.hub.set(|b| b.cuts = (3, 0));
    assert!(whole() == weights());
    assert_eq!(place.ranges(), ["bytes=700000-"; 4]);

    // Complete but for its name, and longer than complete.
    for content in [weights(), [weights(), vec![0; 9]].concat()] {
        left(&content);
        assert!(whole() == weights());
        assert_eq!(place.ranges(), ["bytes=0-"]);
    }

    // Of something else: its digest tells.
    left(&vec![7; 700_000]);
    assert!(whole() == weights());
    assert_eq!(place.ranges(), ["bytes=700000-", "bytes=0-"]);

    // A server that knows no ranges sends all of it again.
    left(&weights()[..700_000]);
    place.hub.set(|b| b.ignores_ranges = true);
    let (found, notes) = place.fetch_noting("org/model");
    assert!(fs::read(found.unwrap().join("model.safetensors")).unwrap() == weights());
    assert_eq!(notes, [""; 0]);
}
