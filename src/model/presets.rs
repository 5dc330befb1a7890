//! The models that come with the program: shapes only, kept as `models/<name>/config.json`.

use super::ModelConfig;
use crate::error::{Error, Result};
use std::path::Path;

/// What is trained when nothing is said.
pub const DEFAULT_PRESET: &str = "story-1m";

/// Name and config.json of every preset.
pub const PRESETS: [(&str, &str); 17] = [
    ("story-1m", include_str!("../../models/story-1m/config.json")),
    ("story-4m", include_str!("../../models/story-4m/config.json")),
    ("smollm2-135m", include_str!("../../models/smollm2-135m/config.json")),
    ("qwen2.5-0.5b", include_str!("../../models/qwen2.5-0.5b/config.json")),
    ("qwen3-0.6b", include_str!("../../models/qwen3-0.6b/config.json")),
    ("tinyllama-1.1b", include_str!("../../models/tinyllama-1.1b/config.json")),
    ("llama-3.2-1b", include_str!("../../models/llama-3.2-1b/config.json")),
    ("smollm3-3b", include_str!("../../models/smollm3-3b/config.json")),
    ("llama-2-7b", include_str!("../../models/llama-2-7b/config.json")),
    ("llama-3-8b", include_str!("../../models/llama-3-8b/config.json")),
    ("llama-3.1-8b", include_str!("../../models/llama-3.1-8b/config.json")),
    ("mixtral-8x7b", include_str!("../../models/mixtral-8x7b/config.json")),
    ("llama-65b", include_str!("../../models/llama-65b/config.json")),
    ("llama-3.1-70b", include_str!("../../models/llama-3.1-70b/config.json")),
    ("mixtral-8x22b", include_str!("../../models/mixtral-8x22b/config.json")),
    ("llama-3.1-405b", include_str!("../../models/llama-3.1-405b/config.json")),
    // As large as BaGuaLu's second largest (Ma et al., 2022), in Mixtral's form; nobody trained it.
    ("mixture-14.5t", include_str!("../../models/mixture-14.5t/config.json")),
];

/// A configuration by what the user typed: a preset's name, a config.json, or a folder that holds one.
///
/// # Errors
/// If it is none of these, or the file is refused by [`ModelConfig::read`].
pub fn find_config(name: &str) -> Result<ModelConfig> {
    if let Some((name, text)) = PRESETS.iter().find(|(preset, _)| *preset == name) {
        return ModelConfig::parse(text, &Path::new("models").join(name).join("config.json"));
    }
    let path = Path::new(name);
    if path.is_dir() {
        let file = path.join("config.json");
        if !file.is_file() {
            return Err(Error::file(path, "this folder holds no config.json; give a Hugging Face model folder"));
        }
        return ModelConfig::read(&file);
    }
    if path.is_file() {
        return ModelConfig::read(path);
    }
    let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
    Err(Error::Invalid(format!(
        "\"{name}\" is neither a preset nor a config.json nor a folder with one; presets: {}",
        names.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_parse_and_count_their_parameters() {
        let counts: Vec<(&str, u64)> =
            PRESETS.iter().map(|(name, _)| (*name, find_config(name).unwrap().parameters())).collect();
        let expected = [
            ("story-1m", 869_504),
            ("story-4m", 4_213_504),
            ("smollm2-135m", 134_515_008),
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen3-0.6b", 596_049_920),
            ("tinyllama-1.1b", 1_100_048_384),
            ("llama-3.2-1b", 1_235_814_400),
            ("smollm3-3b", 3_075_098_624),
            ("llama-2-7b", 6_738_415_616),
            ("llama-3-8b", 8_030_261_248),
            ("llama-3.1-8b", 8_030_261_248),
            ("mixtral-8x7b", 46_702_792_704),
            ("llama-65b", 65_285_660_672),
            ("llama-3.1-70b", 70_553_706_496),
            ("mixtral-8x22b", 140_620_634_112),
            ("llama-3.1-405b", 405_853_388_800),
            ("mixture-14.5t", 14_497_512_427_520),
        ];
        assert_eq!(counts, expected);
        assert!(PRESETS.iter().any(|(name, _)| *name == DEFAULT_PRESET));
    }

    #[test]
    fn unknown_names_are_answered_with_the_list() {
        assert_eq!(
            find_config("gpt-5").unwrap_err().to_string(),
            "\"gpt-5\" is neither a preset nor a config.json nor a folder with one; \
             presets: story-1m, story-4m, smollm2-135m, qwen2.5-0.5b, qwen3-0.6b, tinyllama-1.1b, llama-3.2-1b, \
             smollm3-3b, llama-2-7b, llama-3-8b, llama-3.1-8b, mixtral-8x7b, llama-65b, llama-3.1-70b, mixtral-8x22b, \
             llama-3.1-405b, mixture-14.5t"
        );
    }

    #[test]
    fn folders_and_files_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert!(
            find_config(path)
                .unwrap_err()
                .to_string()
                .ends_with("this folder holds no config.json; give a Hugging Face model folder")
        );
        let file = folder.path().join("config.json");
        std::fs::write(&file, PRESETS[0].1).unwrap();
        assert_eq!(find_config(path).unwrap(), find_config("story-1m").unwrap());
        assert_eq!(find_config(file.to_str().unwrap()).unwrap(), find_config("story-1m").unwrap());
    }
}
