//! Fuzz target: see `safetensors_index` in drive.rs.
#![no_main]

#[path = "../drive.rs"]
#[allow(dead_code)]
mod drive;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    thread_local!(static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a temporary folder"));
    FOLDER.with(|folder| drive::safetensors_index(folder.path(), bytes));
});
