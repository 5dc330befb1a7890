//! Models by their hub name, against a stand-in for the hub on this machine: what is asked, what lies in the cache
//! afterwards, and the sentence for everything that goes wrong.

mod data_sets;
mod once;
mod stand_in;

use danlu::store::{Hub, HubEvent, HubName, HubOptions, HubPart};
use stand_in::{COMMIT, StandIn, sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SMALL: [(&str, &[u8]); 3] =
    [("config.json", b"{\"a\": 1}"), ("README.md", b"not wanted"), ("tokenizer.json", b"{}")];

/// Longer than a machine with much else to do keeps anybody waiting.
const PATIENT: Duration = Duration::from_secs(20);

/// Many reads long.
fn weights() -> Vec<u8> {
    (0..300_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// A hub with a model in one file, and an empty cache.
struct Place {
    hub: StandIn,
    cache: tempfile::TempDir,
    token: Option<String>,
    offline: bool,
    stall: Duration,
}

impl Place {
    fn new() -> Place {
        let weights = weights();
        Place::with(&[&SMALL[..], &[("model.safetensors", &weights)]].concat())
    }

    fn with(files: &[(&str, &[u8])]) -> Place {
        Place {
            hub: StandIn::new(files),
            cache: tempfile::tempdir().unwrap(),
            token: None,
            offline: false,
            stall: PATIENT,
        }
    }

    fn options(&self) -> HubOptions {
        HubOptions {
            endpoint: self.hub.endpoint.clone(),
            cache: self.cache.path().join("hub"),
            token: self.token.clone(),
            offline: self.offline,
            retry_wait: Duration::from_millis(1),
            stall: self.stall,
        }
    }

    fn fetch(&self, name: &str) -> Result<PathBuf, String> {
        self.fetch_noting(name).0
    }

    /// The path, or the sentence without the hub's port, and the notes on the way.
    fn fetch_noting(&self, name: &str) -> (Result<PathBuf, String>, Vec<String>) {
        let (mut notes, mut reached) = (Vec::new(), (0, 0));
        let mut report = |event: HubEvent| match event {
            HubEvent::Note(text) => notes.push(text.to_string()),
            HubEvent::Progress { done, total, .. } => reached = (done, total),
        };
        let found = Hub::new(self.options()).unwrap().fetch(&HubName::parse(name).unwrap(), &mut report);
        if found.is_ok() {
            assert_eq!(reached.0, reached.1, "all that was announced has arrived");
        }
        let cache = self.cache.path().join("hub").display().to_string();
        (found.map_err(|e| e.to_string().replace(&self.hub.endpoint, "HUB").replace(&cache, "CACHE")), notes)
    }

    fn repository(&self) -> PathBuf {
        self.cache.path().join("hub/models--org--model")
    }

    fn blob(&self, name: &str) -> PathBuf {
        self.repository().join("blobs").join(name)
    }

    /// Ranges that were asked of large files, but for the first byte, by which the size is learnt.
    fn ranges(&self) -> Vec<String> {
        let asked = self.hub.requests().into_iter().filter(|r| r.path.starts_with("/cdn/"));
        asked.filter_map(|r| r.range).filter(|r| r != "bytes=0-0").collect()
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_model_lies_in_the_cache_as_other_tools_expect_it() {
    let place = Place::new();
    let folder = place.fetch("org/model").unwrap();
    assert_eq!(folder, place.repository().join("snapshots").join(COMMIT));
    assert_eq!(names(&folder), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), SMALL[0].1);
    assert_eq!(fs::read_to_string(place.repository().join("refs/main")).unwrap(), COMMIT);
    let blob = place.blob(&sha256(&weights()));
    assert_eq!(fs::canonicalize(folder.join("model.safetensors")).unwrap(), fs::canonicalize(blob).unwrap());
    place.hub.requests();

    // Again: where the branch stands is asked, and nothing else.
    assert_eq!(place.fetch("org/model").unwrap(), folder);
    let asked: Vec<String> = place.hub.requests().into_iter().map(|r| r.path).collect();
    assert_eq!(asked, ["/api/models/org/model/revision/main"]);
}

#[test]
fn shards_are_those_that_the_index_names() {
    let index = br#"{"weight_map": {"a": "part-2.safetensors", "b": "part-1.safetensors", "c": "part-2.safetensors"}}"#;
    let more: [(&str, &[u8]); 4] = [
        ("model.safetensors.index.json", index),
        ("part-1.safetensors", b"one"),
        ("part-2.safetensors", b"two and more"),
        ("part-3.safetensors", b"not wanted"),
    ];
    let place = Place::with(&[&SMALL[..], &more].concat());
    let folder = place.fetch("org/model@v1").unwrap();
    let expected =
        ["config.json", "model.safetensors.index.json", "part-1.safetensors", "part-2.safetensors", "tokenizer.json"];
    assert_eq!(names(&folder), expected);
    assert_eq!(fs::read_to_string(place.repository().join("refs/v1")).unwrap(), COMMIT);

    for (shard, message) in [
        (
            "part-4.safetensors",
            "org/model has no file part-4.safetensors; there is part-1.safetensors, part-2.safetensors, part-3.safetensors",
        ),
        ("../config.json", "is not an index of shards (a lies in \"../config.json\"); download it again"),
        ("sub/a.safetensors", "is not an index of shards (a lies in \"sub/a.safetensors\"); download it again"),
    ] {
        let index = format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#);
        let place =
            Place::with(&[SMALL[0], ("model.safetensors.index.json", index.as_bytes()), more[1], more[2], more[3]]);
        let error = place.fetch("org/model").unwrap_err();
        assert!(error.ends_with(message), "{error}");
    }
}

#[test]
fn one_file_of_many() {
    let place = Place::with(&[("a.gguf", b"GGUF a"), ("sub/b.gguf", b"GGUF b"), ("README.md", b"")]);
    let file = place.fetch("org/model:sub/b.gguf").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"GGUF b");
    assert_eq!(names(file.parent().unwrap().parent().unwrap()), ["sub"]);
    let missing = place.fetch("org/model:c.gguf").unwrap_err();
    assert_eq!(missing, "org/model has no file c.gguf; there is a.gguf, sub/b.gguf");
    let which = place.fetch("org/model").unwrap_err();
    assert_eq!(which, "org/model holds GGUF files, a.gguf, sub/b.gguf; choose one, such as org/model:a.gguf");

    let place = Place::with(&[("config.json", b"{}"), ("pytorch_model.bin", b"x")]);
    let pickled = place.fetch("org/model").unwrap_err();
    assert!(pickled.starts_with("org/model holds its weights only as Python pickles, which are not read"), "{pickled}");
    let place = Place::with(&[("README.md", b"hello")]);
    let none = place.fetch("org/model").unwrap_err();
    assert_eq!(
        none,
        "org/model at HUB holds no model that can be read: that is a config.json with model.safetensors or its index, or \
         GGUF files; there is README.md"
    );
}

#[test]
fn of_a_model_in_parts_all_come() {
    let files: [(&str, &[u8]); 3] =
        [("q/m-00001-of-00002.gguf", b"GGUF 1"), ("q/m-00002-of-00002.gguf", b"GGUF 2"), ("m.gguf", b"other")];
    let mut place = Place::with(&files);
    let file = place.fetch("org/model:q/m-00002-of-00002.gguf").unwrap();
    assert_eq!(file.file_name().unwrap(), "m-00002-of-00002.gguf");
    assert_eq!(names(file.parent().unwrap()), ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
    place.offline = true;
    fs::remove_file(file.with_file_name("m-00001-of-00002.gguf")).unwrap();
    let error = place.fetch("org/model:q/m-00002-of-00002.gguf").unwrap_err();
    assert!(error.contains(" is not whole in the cache CACHE, it lacks q/m-00001-of-00002.gguf; "), "{error}");
    let place = Place::with(&files[1..]);
    let error = place.fetch("org/model:q/m-00002-of-00002.gguf").unwrap_err();
    assert_eq!(error, "org/model has no file q/m-00001-of-00002.gguf; there is m.gguf, q/m-00002-of-00002.gguf");
}

/// Of its folder only the templates come.
const TEMPLATES: [(&str, &[u8]); 2] =
    [("additional_chat_templates/tool_use.jinja", b"t"), ("additional_chat_templates/run.py", b"p")];

/// For a configuration or a tokenizer no weights are downloaded, and the cache goes on to know the whole model.
#[test]
fn parts_of_a_model_come_alone() {
    let mut place = Place::with(
        &[&SMALL[..], &[("model.safetensors", b"w"), ("tokenizer_config.json", b"{}")], &TEMPLATES].concat(),
    );
    let get = |place: &Place, part| {
        let name = HubName::parse("org/model").unwrap();
        Hub::new(place.options()).unwrap().fetch_part(&name, part, &mut |_| {}).map_err(|e| e.to_string())
    };
    let folder = get(&place, HubPart::Config).unwrap();
    assert_eq!(names(&folder), ["config.json"]);
    assert_eq!(get(&place, HubPart::Tokenizer).unwrap(), folder);
    assert_eq!(names(&folder), ["additional_chat_templates", "config.json", "tokenizer.json", "tokenizer_config.json"]);
    assert_eq!(names(&folder.join("additional_chat_templates")), ["tool_use.jinja"]);
    place.offline = true;
    assert_eq!(get(&place, HubPart::Tokenizer).unwrap(), folder);
    assert!(place.fetch("org/model").unwrap_err().contains("it lacks model.safetensors; "));

    // Where an older commit is whole, the name leads there still.
    place.offline = false;
    place.fetch("org/model").unwrap();
    let old = place.repository().join("snapshots/old");
    fs::rename(&folder, &old).unwrap();
    fs::write(place.repository().join("refs/main"), "old").unwrap();
    assert_eq!(get(&place, HubPart::Config).unwrap(), folder);
    place.offline = true;
    assert_eq!(place.fetch("org/model").unwrap(), old);

    let bare = Place::with(&[("config.json", b"{}")]);
    assert_eq!(
        get(&bare, HubPart::Tokenizer).unwrap_err(),
        "org/model has no file tokenizer.json; there is config.json"
    );
}

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    let place = Place::new();
    place.hub.set(|b| b.cuts = (1, 500_000));
    let (folder, notes) = place.fetch_noting("org/model");
    assert_eq!(fs::read(folder.unwrap().join("model.safetensors")).unwrap(), weights());
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].starts_with("the connection broke ("), "{notes:?}");
    assert_eq!(place.ranges(), ["bytes=0-", "bytes=500000-"]);
}

/// A server that keeps the connection and sends nothing more.
#[test]
fn a_stalled_download_is_taken_up_again() {
    let place = Place { stall: Duration::from_millis(500), ..Place::new() };
    place.hub.set(|b| b.stalls = (1, 500_000));
    let (folder, notes) = place.fetch_noting("org/model");
    assert_eq!(fs::read(folder.unwrap().join("model.safetensors")).unwrap(), weights());
    assert!(notes.len() == 1 && notes[0].starts_with("the connection broke (timeout: "), "{notes:?}");
    assert_eq!(place.ranges(), ["bytes=0-", "bytes=500000-"]);
}

#[test]
fn too_many_cuts_end_in_a_sentence_and_keep_what_came() {
    // More cuts than tries, but each brings a hundred bytes.
    let place = Place::new();
    place.hub.set(|b| b.cuts = (9, 100));
    place.fetch("org/model").unwrap();

    let place = Place::new();
    place.hub.set(|b| b.refuses = Some(("/cdn/".into(), 503, "", 100)));
    let error = place.fetch("org/model").unwrap_err();
    assert_eq!(error, "cannot download org/model: HUB answers with status 503; try again later");
    place.hub.set(|b| {
        b.refuses = None;
        b.cuts = (100, 0);
    });
    let error = place.fetch("org/model").unwrap_err();
    assert!(error.starts_with("cannot download org/model, HUB cannot be reached or broke off ("), "{error}");
    assert!(error.ends_with("); check the network, a proxy and HF_ENDPOINT, and try again: what has arrived is kept"));
    place.hub.set(|b| b.cuts = (0, 0));
    place.fetch("org/model").unwrap();
}

#[test]
fn damaged_content_is_not_kept() {
    let place = Place::new();
    place.fetch("org/model").unwrap();
    let (blob, target) = (place.blob(&sha256(&weights())), place.repository().join("snapshots").join(COMMIT));
    let target = target.join("model.safetensors");
    fs::remove_file(&blob).unwrap();
    fs::remove_file(&target).unwrap();
    place.hub.set(|b| b.damages = 2);
    let (error, notes) = place.fetch_noting("org/model");
    let mut wrong = weights();
    *wrong.last_mut().unwrap() ^= 1;
    assert_eq!(
        error.unwrap_err(),
        format!(
            "model.safetensors of org/model arrived damaged twice, its sha256 is {} instead of {}; nothing of it was kept: \
             try again, or check the proxy or mirror in between (HUB)",
            sha256(&wrong),
            sha256(&weights())
        )
    );
    assert_eq!(notes, ["model.safetensors arrived damaged; downloading it once more"]);
    assert!(fs::symlink_metadata(&blob).is_err() && fs::symlink_metadata(&target).is_err());
    place.hub.set(|b| b.damages = 1);
    assert!(fs::read(place.fetch("org/model").unwrap().join("model.safetensors")).unwrap() == weights());
}

#[test]
fn refusals_are_sentences() {
    let listing = "/api/models/";
    let file = "/org/model/resolve/";
    let gone = "HUB has no model org/model, or it is private; check the name, or set HF_TOKEN to a token of an account that \
                may see it";
    let gated = "org/model is gated, and you, without a token, may not download it; ask for access at HUB/org/model, then set \
                 HF_TOKEN to a token of that account";
    let not_yet =
        "org/model is gated, and the account of your HF_TOKEN may not download it; ask for access at HUB/org/model";
    let bad_token =
        "HUB does not accept the token for org/model; check HF_TOKEN, or the token file in HF_HOME, and the name";
    for (path, status, code, token, expected) in [
        (listing, 401, "RepoNotFound", false, gone),
        (listing, 401, "", false, gone),
        (listing, 401, "", true, bad_token),
        (listing, 404, "RepoNotFound", true, "HUB has no model org/model; check the name"),
        (listing, 403, "GatedRepo", true, not_yet),
        (file, 401, "", false, gated),
        (file, 403, "", true, not_yet),
        (file, 404, "", false, "HUB lists config.json of org/model but does not give it; try again"),
        (
            listing,
            429,
            "",
            false,
            "HUB wants fewer requests (status 429); wait a few minutes, or set HF_TOKEN: it allows more",
        ),
        (file, 429, "", true, "HUB wants fewer requests (status 429); wait a few minutes"),
        (listing, 500, "", false, "cannot download org/model: HUB answers with status 500; try again later"),
    ] {
        let mut place = Place::new();
        place.token = token.then(|| "secret".into());
        place.hub.set(|b| b.refuses = Some((path.into(), status, code, 100)));
        assert_eq!(place.fetch("org/model").unwrap_err(), expected, "{path} {status} {code}");
    }
    let place = Place::new();
    assert_eq!(place.fetch("org/modle").unwrap_err(), "HUB has no model org/modle; check the name");
    assert_eq!(
        place.fetch("org/model@v2").unwrap_err(),
        "org/model has no revision v2; its branches and commits are listed at HUB/org/model"
    );
}

#[test]
fn the_token_goes_to_the_hub_and_the_file_comes_without_it() {
    let mut place = Place::new();
    place.token = Some("secret".into());
    place.fetch("org/model").unwrap();
    for request in place.hub.requests() {
        match request.path.starts_with("/cdn/") {
            // Of hf-hub's own request for the size we say in docs/decisions/0005-hf-hub-0.5.md.
            true if request.range.as_deref() == Some("bytes=0-0") => {}
            true => assert_eq!(request.authorization, None, "{}", request.path),
            false => assert_eq!(request.authorization.as_deref(), Some("Bearer secret"), "{}", request.path),
        }
    }
}

#[test]
fn offline_the_cache_is_all_there_is() {
    let mut place = Place::new();
    place.offline = true;
    let lacks = "nothing may be downloaded: unset HF_HUB_OFFLINE once";
    let nothing = place.fetch("org/model").unwrap_err();
    assert_eq!(
        nothing,
        format!("org/model is not whole in the cache CACHE, it lacks config.json, model.safetensors; {lacks}")
    );
    assert!(place.hub.requests().is_empty());
    place.offline = false;
    let folder = place.fetch("org/model").unwrap();
    place.hub.requests();
    place.offline = true;
    for name in ["org/model".to_string(), format!("org/model@{COMMIT}")] {
        assert_eq!(place.fetch(&name).unwrap(), folder);
    }
    assert!(place.hub.requests().is_empty());
    let file = place.fetch("org/model:a.gguf").unwrap_err();
    assert_eq!(file, format!("org/model:a.gguf is not whole in the cache CACHE, it lacks a.gguf; {lacks}"));
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let part = place.fetch("org/model").unwrap_err();
    assert_eq!(part, format!("org/model is not whole in the cache CACHE, it lacks model.safetensors; {lacks}"));
}

#[test]
fn without_a_network_the_cache_serves() {
    let mut place = Place::new();
    let folder = place.fetch("org/model").unwrap();
    // A port on which nobody listens any more.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    place.hub.endpoint = format!("http://{closed}");
    let (found, notes) = place.fetch_noting("org/model");
    assert_eq!(found.unwrap(), folder);
    assert!(notes[0].starts_with(&format!("cannot reach http://{closed} (")), "{notes:?}");
    assert!(notes[0].ends_with("); using org/model from the cache"), "{notes:?}");
    let error = place.fetch("org/other").unwrap_err();
    assert!(error.starts_with("cannot download org/other, HUB cannot be reached or broke off ("), "{error}");
    place.hub.endpoint = "http://no-such-host.invalid".into();
    let error = place.fetch("org/other").unwrap_err();
    assert!(error.starts_with("cannot download org/other, HUB cannot be reached or broke off ("), "{error}");
}

#[test]
fn a_hub_cannot_write_outside_its_cache() {
    let weights = weights();
    let sly = |change: &dyn Fn(&mut stand_in::Behaviour)| {
        let place = Place::with(&[SMALL[0], ("model.safetensors", &weights)]);
        place.hub.set(|b| change(b));
        let error = place.fetch("org/model").unwrap_err();
        let [all, own] = ["", "hub"].map(|folder| names(&place.cache.path().join(folder)));
        assert!(all == ["hub"] && own.is_empty(), "{error}: {all:?}, {own:?}");
        error
    };
    let etag = sly(&|b| b.etag = Some("../../../evil".into()));
    assert_eq!(
        etag,
        "cannot download org/model: HUB says of config.json that its etag is \"../../../evil\"; is it a hub? check HF_ENDPOINT"
    );
    let commit = sly(&|b| b.commit = Some("../..".into()));
    assert!(
        commit.contains("HUB says of config.json that it is of the commit \"../..\", where 0123456789"),
        "{commit}"
    );
    // Names that lead elsewhere are as good as not there.
    let place = Place::with(&[SMALL[0]]);
    place.hub.set(|b| b.listed = vec!["../model.safetensors".into(), "/model.safetensors".into()]);
    let error = place.fetch("org/model").unwrap_err();
    assert!(error.ends_with("or GGUF files; there is config.json"), "{error}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_and_a_cache_that_cannot_be_written() {
    let place = Place::new();
    let part = place.blob(&sha256(&weights())).with_extension("part");
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let error = place.fetch("org/model").unwrap_err();
    assert_eq!(
        error,
        "cannot download model.safetensors of org/model, the disk is full (No space left on device (os error 28)): 1200000 \
         bytes are wanted in CACHE; free space there, or set HF_HOME to another folder, and try again: what has arrived is kept"
    );
    let place = Place::new();
    fs::write(place.cache.path().join("hub"), "a file").unwrap();
    let error = place.fetch("org/model").unwrap_err();
    assert_eq!(
        error,
        "cannot keep anything of org/model in CACHE (File exists (os error 17)); make that folder writable, or set HF_HOME to \
         another"
    );
    assert!(place.hub.requests().is_empty(), "nothing is asked for what has no place");
}
