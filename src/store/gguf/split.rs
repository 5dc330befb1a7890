//! Models in several GGUF files, as llama.cpp's `gguf-split` writes them: `NAME-00001-of-00003.gguf` and so on, each with
//! `split.no` (from 0), `split.count` and `split.tensors.count`; the metadata are the first one's.

use super::Metadata;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// True for the keys that say of which part a file is: no model has them.
pub(super) fn is_split_key(key: &str) -> bool {
    key.starts_with("split.")
}

/// The names of all parts, in order, of the model of which a file of this name is one.
pub(in crate::store) fn part_names(name: &str) -> Option<Vec<String>> {
    let (stem, ending) = name.split_at_checked(name.len().checked_sub(".gguf".len())?)?;
    if !ending.eq_ignore_ascii_case(".gguf") {
        return None;
    }
    let number = |s: &str| s.parse::<usize>().ok().filter(|_| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit()));
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (first, own) = rest.rsplit_once('-')?;
    let (own, count) = (number(own)?, number(count)?);
    (1..=count).contains(&own).then(|| (1..=count).map(|i| format!("{first}-{i:05}-of-{count:05}{ending}")).collect())
}

/// The parts of the model of which this file is one, in order; nothing where it is whole.
///
/// # Errors
/// If the file bears a name by which the others cannot be found.
pub(in crate::store) fn parts(path: &Path, metadata: &Metadata) -> Result<Option<Vec<PathBuf>>> {
    let count = metadata.uint("split.count")?.unwrap_or(1);
    if count <= 1 {
        return Ok(None);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let names = part_names(&name).filter(|names| names.len() as u64 == count);
    let names = names.ok_or_else(|| {
        let own = metadata.uint("split.no").ok().flatten().unwrap_or(0).saturating_add(1);
        let message = format!(
            "is part {own} of {count} of a model (split.no, split.count) and is not named so; give all parts their names \
             back: NAME-{own:05}-of-{count:05}.gguf"
        );
        Error::file(path, message)
    })?;
    Ok(Some(names.into_iter().map(|name| path.with_file_name(name)).collect()))
}

/// Refuses a part that is not the one its name says.
pub(in crate::store) fn check_part(path: &Path, metadata: &Metadata, i: usize, count: usize) -> Result<()> {
    let (own, of) = (metadata.uint("split.no")?, metadata.uint("split.count")?);
    if (own, of) == (Some(i as u64), Some(count as u64)) {
        return Ok(());
    }
    let said = |n: Option<u64>| n.map_or("absent".into(), |n| n.to_string());
    let message = format!(
        "is named part {} of {count}, and its split.no is {} where it should be {i}, its split.count {}; fetch it again",
        i + 1,
        said(own),
        said(of)
    );
    Err(Error::file(path, message))
}

/// Refuses a model that has not as many tensors in all as its first part says.
pub(in crate::store) fn check_tensors(path: &Path, metadata: &Metadata, tensors: usize) -> Result<()> {
    match metadata.uint("split.tensors.count")? {
        Some(count) if count != tensors as u64 => {
            let message = format!(
                "says that its parts hold {count} tensors (split.tensors.count), and they hold {tensors}; fetch them again"
            );
            Err(Error::file(path, message))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        let two = Some(vec!["sub/m-of-7-00001-of-00002.gguf".to_string(), "sub/m-of-7-00002-of-00002.gguf".into()]);
        assert_eq!(part_names("sub/m-of-7-00002-of-00002.gguf"), two);
        assert_eq!(part_names("m-00001-of-00001.GGUF").unwrap(), ["m-00001-of-00001.GGUF"]);
        for name in [
            "m.gguf",
            "m-00000-of-00002.gguf",
            "m-00003-of-00002.gguf",
            "m-1-of-2.gguf",
            "m-00001-of-00002.bin",
            "m-+0001-of-00002.gguf",
            "-of-",
            "é",
        ] {
            assert_eq!(part_names(name), None, "{name}");
        }
    }
}
