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
