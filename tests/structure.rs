//! The rooms of the crate and who may import whom, and the habits of its files: read from the source text itself.

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, each of which may import only from those before it. `error` and `base` are free to all.
const ROOMS: &[&str] = &[
    "error", "base", "gpu", "shader", "graph", "ops", "parallel", "compile", "comm", "run", "nn", "model", "store",
    "data", "optim", "infer", "eval", "train", "bench", "estimate", "serve", "cli",
];

/// Rooms that say what to compute: they see a device's limits as data, never the device.
const DEVICELESS: &[&str] = &["error", "base", "graph", "ops", "parallel", "compile", "nn", "model", "optim"];

/// What only the program's edge may do.
const EDGE_ONLY: &[&str] =
    &["println!", "eprintln!", "print!", "eprint!", "dbg!", "env::var", "env::args", "process::exit", "process::abort"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` with this ending, sorted, with paths from the repository's root.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                walk(&path, ending, found);
            } else if path.extension().is_some_and(|e| e == ending) {
                found.push(path.strip_prefix(root()).expect("below the root").to_path_buf());
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), ending, &mut found);
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The text without comments, string contents and unit tests (which stand at the end of a file, or in `*tests.rs`).
fn code(path: &Path) -> String {
    if path.to_string_lossy().ends_with("tests.rs") {
        return String::new();
    }
    let text = read(path);
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => {
                chars.by_ref().find(|&c| c == '\n');
                out.push('\n');
            }
            '"' => {
                out.push_str("\"\"");
                while let Some(c) = chars.next() {
                    match c {
                        '\\' => drop(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            // A quote as a character must not open a string; no lifetime is followed by these.
            '\'' if chars.peek() == Some(&'"') => drop(chars.next()),
            '\'' if chars.peek() == Some(&'\\') => drop(chars.by_ref().nth(1)),
            _ => out.push(c),
        }
    }
    out
}

/// The room that a file of `src/` belongs to: its folder, or its own name where it has none.
fn room(path: &Path) -> String {
    let inside = path.strip_prefix("src").expect("a file of src");
    inside.components().next().map(|c| c.as_os_str().to_string_lossy().trim_end_matches(".rs").to_string()).unwrap()
}

/// Rooms that a file names as `crate::ROOM`, alone or in a group `crate::{a, b::c}`.
fn imports(code: &str) -> Vec<String> {
    let word = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push(word(rest));
            continue;
        };
        let mut depth = 1;
        let mut start = true;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => start = true,
                _ if start && !c.is_whitespace() => {
                    found.push(word(&group[i..]));
                    start = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

/// Fails with all complaints at once.
fn none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn imports_are_seen() {
    let seen = imports("use crate::{base::Array, graph::{Op, ops}, gpu}; crate::ops::Copy; mycrate::cli");
    assert_eq!(seen, ["base", "graph", "gpu", "ops"]);
}

#[test]
fn a_room_imports_only_from_rooms_before_it() {
    let mut complaints = Vec::new();
    for path in files("src", "rs") {
        let own = room(&path);
        if own == "lib" || own == "bin" {
            continue;
        }
        let Some(place) = ROOMS.iter().position(|r| *r == own) else {
            complaints.push(format!("{}: {own} is no room; name it in tests/structure.rs", path.display()));
            continue;
        };
        for import in imports(&code(&path)) {
            match ROOMS.iter().position(|r| *r == import) {
                _ if import == own || import == "error" || import == "base" => {}
                None => complaints.push(format!("{}: crate::{import} is no room", path.display())),
                Some(at) if at > place => complaints.push(format!("{}: {own} imports {import}", path.display())),
                Some(_) if import == "gpu" && DEVICELESS.contains(&own.as_str()) => {
                    complaints.push(format!("{}: {own} must not know a device", path.display()));
                }
                Some(_) => {}
            }
        }
    }
    none(complaints);
}

#[test]
fn the_library_declares_its_rooms_in_order() {
    let text = read(Path::new("src/lib.rs"));
    let declared: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let bound = declared.iter().filter(|r| !["error", "base"].contains(r));
    let places: Vec<Option<usize>> = bound.map(|r| ROOMS.iter().position(|known| known == r)).collect();
    assert!(places.iter().all(Option::is_some), "src/lib.rs declares what is no room: {declared:?}");
    assert!(places.is_sorted(), "src/lib.rs declares the rooms in another order: {declared:?}");
}

#[test]
fn only_gpu_names_wgpu_and_only_shader_names_naga() {
    let mut complaints = Vec::new();
    for path in files("src", "rs") {
        let code = code(&path);
        for (library, homes) in [("wgpu", &["gpu"][..]), ("naga", &["gpu", "shader"])] {
            let named = [format!("{library}::"), format!("use {library};")].iter().any(|p| {
                code.match_indices(p.as_str())
                    .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
            });
            if named && !homes.contains(&room(&path).as_str()) {
                complaints.push(format!("{}: names {library}, which only {homes:?} may", path.display()));
            }
        }
    }
    none(complaints);
}

#[test]
fn the_library_neither_prints_nor_exits_nor_reads_the_environment() {
    let mut complaints = Vec::new();
    for path in files("src", "rs").into_iter().filter(|p| !["cli", "bin"].contains(&room(p).as_str())) {
        let code = code(&path);
        for what in EDGE_ONLY.iter().chain(&["todo!", "unimplemented!"]) {
            let hit = code.match_indices(what).find(|(at, _)| !code[..*at].ends_with(|c: char| c.is_alphanumeric()));
            if let Some((at, _)) = hit {
                let line = code[..at].lines().count();
                complaints.push(format!("{}: {what} near line {line}", path.display()));
            }
        }
    }
    none(complaints);
}

/// Else a test could skip where its data are required (`DANLU_TEST_DATA`).
#[test]
fn tests_find_data_beside_the_checkout_by_one_function() {
    let files = ["src", "tests", "benches", "examples"].into_iter().flat_map(|f| files(f, "rs"));
    let wrong = files.filter(|p| !p.ends_with("common/shared.rs") && !p.ends_with("structure.rs"));
    none(wrong.filter(|p| read(p).contains("join(\"../shared")).map(|p| p.display().to_string()).collect());
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut complaints = Vec::new();
    let rust = ["src", "tests", "examples"].into_iter().flat_map(|f| files(f, "rs")).map(|p| (p, 500, "//! "));
    let wgsl = files("shaders", "wgsl").into_iter().map(|p| (p, 200, "// "));
    for (path, most, opening) in rust.chain(wgsl) {
        let text = read(&path);
        let lines = text.lines().count();
        if lines > most {
            complaints.push(format!("{}: {lines} lines, over {most}", path.display()));
        }
        if !text.starts_with(opening) {
            complaints.push(format!("{}: the first line does not say what the file is ({opening}…)", path.display()));
        }
    }
    none(complaints);
}

/// A file that no `mod` names is not compiled, however right it looks.
#[test]
fn every_source_file_is_a_module() {
    let sources: Vec<PathBuf> = files("src", "rs").into_iter().filter(|p| !p.starts_with("src/bin")).collect();
    let all: String = sources.iter().map(|p| read(p)).collect();
    let is_named = |path: &&PathBuf| {
        let stem = path.file_stem().and_then(|s| s.to_str()).expect("a name");
        let name =
            if stem == "mod" { path.parent().and_then(Path::file_name).and_then(|s| s.to_str()) } else { Some(stem) };
        let name = name.expect("a folder");
        stem == "lib" || all.contains(&format!("mod {name};")) || all.contains(&format!("{stem}.rs\"]"))
    };
    none(sources.iter().filter(|p| !is_named(p)).map(|p| format!("{} is no module", p.display())).collect());
}

#[test]
fn shaders_have_no_atomics_and_no_overrides() {
    let mut complaints = Vec::new();
    for path in files("shaders", "wgsl") {
        for (i, line) in read(&path).lines().enumerate() {
            let line = line.split("//").next().unwrap_or_default();
            for what in ["atomic", "override "] {
                if line.contains(what) {
                    complaints.push(format!("{}:{}: {what}", path.display(), i + 1));
                }
            }
        }
    }
    none(complaints);
}

/// WGSL wants parentheses between shifts and `&` or `|`; naga does without, browsers do not.
#[test]
fn shifts_stand_in_parentheses_beside_and_or() {
    let mut complaints = Vec::new();
    for path in files("shaders", "wgsl") {
        for (i, line) in read(&path).lines().enumerate() {
            if mixes(line.split("//").next().unwrap_or_default()) {
                complaints.push(format!("{}:{}: {line}", path.display(), i + 1));
            }
        }
    }
    none(complaints);
    assert!(mixes("a >> 8u & 255u") && mixes("f(1u) | (b << 2u) | c << 4u") && mixes("x[a & b << 1u]"));
    assert!(
        !mixes("(a >> 8u) & 255u")
            && !mixes("f(a << 1u, b | c)")
            && !mixes("a << 1u; b & c")
            && !mixes("x[a & b] << 1u")
    );
}

/// True where a shift and `&` or `|` are operators of one expression.
fn mixes(line: &str) -> bool {
    let mut open = vec![(false, false)];
    let words = line.replace(['(', '['], " ( ").replace([')', ']'], " ) ").replace([',', ';', '{', '}'], " , ");
    for word in words.split_whitespace() {
        let last = open.last_mut().expect("one for the line");
        match word {
            ">>" | "<<" => last.0 = true,
            "&" | "|" => last.1 = true,
            "," | "=" | "&&" | "||" | "return" => *last = (false, false),
            "(" => open.push((false, false)),
            ")" if open.len() > 1 => drop(open.pop()),
            _ => {}
        }
        if open.last() == Some(&(true, true)) {
            return true;
        }
    }
    false
}

/// The recipe that the tour shows is the one that a run without flags has.
#[test]
fn the_tour_shows_the_defaults_of_a_recipe() {
    let tour = read(Path::new("docs/tour.md"));
    let lines = tour.lines().skip_while(|l| !l.ends_with("with these defaults:")).skip(1);
    let shown: Vec<&str> = lines.take_while(|l| l.is_empty() || l.starts_with("    ")).map(str::trim).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), shown.join("\n")).unwrap();
    assert!(shown.len() > 15, "{shown:?}");
    assert_eq!(danlu::train::Recipe::open(file.path()).unwrap(), danlu::train::Recipe::default());
}

/// Every shader of the folder is named by an operator (or imported by a shader), and none is named that is not there.
#[test]
fn every_shader_is_used_and_every_name_has_a_shader() {
    let there: Vec<String> = files("shaders", "wgsl")
        .iter()
        .map(|p| p.strip_prefix("shaders").unwrap().with_extension("").to_string_lossy().replace('\\', "/"))
        .collect();
    let rust: String = files("src", "rs").iter().filter(|p| room(p) != "shader").map(|p| read(p)).collect();
    let wgsl: String = files("shaders", "wgsl").iter().map(|p| read(p)).collect();
    let mut complaints = Vec::new();
    for name in &there {
        let used = if name.starts_with("lib/") {
            wgsl.contains(&format!("#import {name}.wgsl"))
        } else {
            rust.contains(&format!("\"{name}\""))
        };
        if !used {
            complaints.push(format!("shaders/{name}.wgsl: nothing uses it"));
        }
    }
    for (at, opening) in rust.match_indices("Kernel::new(\"") {
        let name: String = rust[at + opening.len()..].chars().take_while(|c| *c != '"').collect();
        if !there.contains(&name) {
            complaints.push(format!("a kernel names shaders/{name}.wgsl, which is not there"));
        }
    }
    none(complaints);
}
