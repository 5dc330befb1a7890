//! Published models and texts that lie beside the checkout, in ../shared/data, and are no part of it. A test that finds none
//! passes and says so; with `DANLU_TEST_DATA=required` in the environment, as .ci/run sets it where the folder is, it fails.

use std::path::{Path, PathBuf};

/// This file or folder of the data, if it is there.
pub fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(path);
    if path.exists() {
        return Some(path);
    }
    let wanted = std::env::var("DANLU_TEST_DATA").unwrap_or_default();
    assert!(wanted.is_empty() || wanted == "required", "DANLU_TEST_DATA is `{wanted}`; it may be `required`");
    assert!(wanted.is_empty(), "DANLU_TEST_DATA requires {}, which is not there", path.display());
    eprintln!("skipped: {} is not there", path.display());
    None
}
