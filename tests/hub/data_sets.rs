//! Data sets by their names on the hub.

use super::*;

/// Of a data set come the files for training, and offline they are found again; half of one is none.
#[test]
fn a_data_set_comes_by_its_name() {
    let files: [(&str, &[u8]); 4] = [
        ("README.md", b"# about"),
        ("data/train-0.jsonl", b"{\"text\": \"a\"}\n"),
        ("data/train-1.jsonl", b"{\"text\": \"b\"}\n"),
        ("data/test-0.jsonl", b"{\"text\": \"c\"}\n"),
    ];
    let mut place = Place::with(&files);
    let get = |place: &Place, text: &str| {
        let name = HubName::parse_data(text).unwrap();
        Hub::new(place.options()).unwrap().fetch_part(&name, HubPart::Data, &mut |_| {}).map_err(|e| e.to_string())
    };
    let folder = get(&place, "datasets/org/data").unwrap();
    assert!(folder.starts_with(place.cache.path().join("hub/datasets--org--data/snapshots")), "{folder:?}");
    assert_eq!(names(&folder.join("data")), ["train-0.jsonl", "train-1.jsonl"]);
    place.offline = true;
    assert_eq!(get(&place, "org/data").unwrap(), folder);
    place.offline = false;
    let one = get(&place, "org/data:data/test-0.jsonl").unwrap();
    assert_eq!(fs::read(&one).unwrap(), b"{\"text\": \"c\"}\n");
    // What is for tests must not slip in because it lies there.
    let error = get(&place, "org/data").unwrap_err();
    assert!(error.contains("the cache holds data/test-0.jsonl besides the files for training"), "{error}");
    let mut fresh = Place::with(&files);
    get(&fresh, "org/data:data/train-0.jsonl").unwrap();
    fresh.offline = true;
    assert!(get(&fresh, "org/data").unwrap_err().contains("it lacks all files"));
    let none = Place::with(&[("a.bin", b"x")]);
    assert!(get(&none, "org/data").unwrap_err().starts_with("the data set org/data has no file that is read"));
}
