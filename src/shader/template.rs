//! From a shader's file to the text that is compiled: header constants, `#import`, `#if`, `#hook`. See shaders/README.md.

use super::{Source, library, reflect};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{LazyLock, Mutex};

/// A value of the header that specialises a shader.
pub type Constant = (&'static str, u32);

/// Text that the fuser puts in place of `#hook NAME`; the variables that it reads are bound by every dispatch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hook {
    /// `prologue`, `epilogue`, `map` or `second`.
    pub name: &'static str,
    /// A WGSL function of that name.
    pub code: String,
    /// Storage variables that the function reads, with their WGSL element type, e.g. `("e0", "f32")`.
    pub reads: Vec<(String, &'static str)>,
}

/// Specialises a shader of the library and reads off what it binds.
///
/// # Errors
/// [`Error::Shader`] with file and line for an unknown shader, a directive that cannot be followed, a hook that the
/// shader does not have or lacks, and whatever the WGSL validator refuses.
pub fn assemble(shader: &str, constants: &[Constant], hooks: &[Hook]) -> Result<Source> {
    let text = library::text(shader).ok_or_else(|| Error::Shader {
        shader: shader.to_string(),
        message: "there is no such file under shaders/, or src/shader/library.rs does not list it".into(),
    })?;
    let passed = || PASSED.lock().unwrap_or_else(|e| e.into_inner());
    let key = (shader.to_string(), constants.to_vec(), hooks.to_vec());
    if let Some(found) = passed().get(&key) {
        return Ok(found.clone());
    }
    let source = assemble_text(shader, text, constants, hooks)?;
    passed().insert(key, source.clone());
    Ok(source)
}

/// What a shader of the library is specialised by.
type Special = (String, Vec<Constant>, Vec<Hook>);

/// Specialised shaders that have passed the validator: a plan has a kernel once for each layer, and a process many plans.
static PASSED: LazyLock<Mutex<HashMap<Special, Source>>> = LazyLock::new(Mutex::default);

/// [`assemble`], of a text that is not in the library.
pub(crate) fn assemble_text(shader: &str, text: &str, constants: &[Constant], hooks: &[Hook]) -> Result<Source> {
    let mut t = Template {
        shader,
        constants,
        hooks,
        enables: Vec::new(),
        lines: Vec::new(),
        seen: Vec::new(),
        met: Vec::new(),
    };
    for (name, value) in constants {
        t.push(format!("const {name}: u32 = {value}u;"), "header", 0);
    }
    t.expand(shader, text)?;
    if let Some(hook) = hooks.iter().find(|h| !t.met.contains(&h.name.to_string())) {
        return Err(t.error(
            shader,
            1,
            format!("has no line `#hook {}`, yet its caller fuses something there", hook.name),
        ));
    }
    t.declare_reads();
    let mut out = String::new();
    let lines: Vec<&Line> = t.enables.iter().chain(&t.lines).collect();
    for line in &lines {
        writeln!(out, "{}", line.text).expect("writing to a string");
    }
    // The validator counts lines of the result; the reader wants those of the file.
    reflect::reflect(shader, out, &|n| {
        lines.get(n.saturating_sub(1)).map_or("header".into(), |l| format!("{}:{}", l.file, l.number))
    })
}

struct Line {
    text: String,
    file: String,
    number: usize,
}

struct Template<'a> {
    shader: &'a str,
    constants: &'a [Constant],
    hooks: &'a [Hook],
    /// `enable` directives, which WGSL wants before everything else.
    enables: Vec<Line>,
    lines: Vec<Line>,
    /// Imports done.
    seen: Vec<String>,
    /// Hooks met.
    met: Vec<String>,
}

/// An open `#if`.
struct Branch {
    line: usize,
    /// Lines count where the `#if` itself stands.
    outer: bool,
    /// The condition, inverted by `#else`.
    taken: bool,
    has_else: bool,
}

impl Template<'_> {
    fn push(&mut self, text: impl Into<String>, file: &str, number: usize) {
        self.lines.push(Line { text: text.into(), file: file.to_string(), number });
    }

    fn error(&self, file: &str, line: usize, message: impl std::fmt::Display) -> Error {
        Error::Shader { shader: self.shader.to_string(), message: format!("{file}.wgsl:{line}: {message}") }
    }

    fn expand(&mut self, file: &str, text: &str) -> Result<()> {
        let mut open: Vec<Branch> = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(i, l)| (i + 1, l)) {
            let active = open.last().is_none_or(|b| b.outer && b.taken);
            let trimmed = line.trim();
            let mut words = trimmed.split_whitespace();
            let (word, argument, rest) = (words.next().unwrap_or(""), words.next(), words.next());
            match (word, argument, rest) {
                ("#if", Some(name), None) => {
                    let taken = self.constants.iter().any(|(n, value)| *n == name && *value != 0)
                        || self.hooks.iter().any(|hook| hook.name == name);
                    open.push(Branch { line: number, outer: active, taken, has_else: false });
                }
                ("#else", None, None) => match open.last_mut() {
                    Some(b) if !b.has_else => (b.taken, b.has_else) = (!b.taken, true),
                    _ => return Err(self.error(file, number, "`#else` without an open `#if`")),
                },
                ("#endif", None, None) => {
                    open.pop().ok_or_else(|| self.error(file, number, "`#endif` without an open `#if`"))?;
                }
                ("#import" | "#hook", Some(_), None) if !active => {}
                ("#import", Some(path), None) => self.import(file, number, path)?,
                ("#hook", Some(name), None) => self.hook(file, number, name)?,
                _ if trimmed.starts_with('#') => {
                    return Err(self.error(
                        file,
                        number,
                        format!("`{trimmed}` is none of #import, #if, #else, #endif, #hook"),
                    ));
                }
                _ if !active => {}
                ("enable", _, _) => {
                    self.enables.push(Line { text: line.to_string(), file: file.to_string(), number });
                }
                _ => self.push(line, file, number),
            }
        }
        match open.pop() {
            Some(b) => Err(self.error(file, b.line, "this `#if` has no `#endif`")),
            None => Ok(()),
        }
    }

    fn import(&mut self, file: &str, line: usize, path: &str) -> Result<()> {
        let name = path.strip_suffix(".wgsl").unwrap_or(path);
        if self.seen.iter().any(|s| s == name) {
            return Ok(());
        }
        self.seen.push(name.to_string());
        let text =
            library::text(name).ok_or_else(|| self.error(file, line, format!("there is no shaders/{name}.wgsl")))?;
        self.expand(name, text)
    }

    fn hook(&mut self, file: &str, line: usize, name: &str) -> Result<()> {
        self.met.push(name.to_string());
        let code = match (self.hooks.iter().find(|h| h.name == name), name) {
            (Some(hook), _) => hook.code.clone(),
            (None, "prologue" | "epilogue") => format!("fn {name}(v: f32, i: u32) -> f32 {{ return v; }}"),
            (None, _) => return Err(self.error(file, line, format!("nothing was given for `#hook {name}`"))),
        };
        for text in code.lines() {
            self.push(text, file, line);
        }
        Ok(())
    }

    /// Declares what the hooks read, at the binding numbers that the file leaves free.
    fn declare_reads(&mut self) {
        let used = self.lines.iter().filter_map(|l| {
            let at = l.text.split("//").next()?.split("@binding(").nth(1)?;
            at.split(')').next()?.trim().trim_end_matches('u').parse::<u32>().ok()
        });
        let mut next = used.max().map_or(0, |n| n + 1);
        let mut declared: Vec<&str> = Vec::new();
        for (name, element) in self.hooks.iter().flat_map(|h| &h.reads) {
            if declared.contains(&name.as_str()) {
                continue;
            }
            declared.push(name);
            let text = format!("@group(0) @binding({next}) var<storage, read> {name}: array<{element}>;");
            self.lines.push(Line { text, file: "hooks".into(), number: 0 });
            next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_ask_whether_a_hook_is_filled() {
        let body = "@group(0) @binding(0) var<storage, read_write> y: array<f32>;\n#hook epilogue\n\
            #if epilogue\nconst X = 1.0;\n#else\nconst X = 2.0;\n#endif\n\
            @compute @workgroup_size(1) fn main() { y[0] = epilogue(X, 0u); }\n";
        let code = "fn epilogue(v: f32, i: u32) -> f32 { return 3.0 * v; }".to_string();
        let hook = Hook { name: "epilogue", code, reads: Vec::new() };
        assert!(assemble_text("t", body, &[], &[hook]).unwrap().text.contains("X = 1.0"));
        assert!(assemble_text("t", body, &[], &[]).unwrap().text.contains("X = 2.0"));
    }

    const BODY: &str = "@group(0) @binding(1) var<storage, read_write> y: array<f32>;\n#hook epilogue\n\
        #if FAST\n#if DEEP\nbroken\n#else\nconst X: f32 = 1.0;\n#endif\n#else\nconst X: f32 = 2.0;\n#endif\n\
        @compute @workgroup_size(N) fn main(@builtin(global_invocation_id) id: vec3<u32>) { y[id.x] = epilogue(X, id.x); }\n";

    #[test]
    fn branches_nest_and_hooks_bind() {
        let hook = Hook {
            name: "epilogue",
            code: "fn epilogue(v: f32, i: u32) -> f32 { return v + e0[i]; }".into(),
            reads: vec![("e0".into(), "f32")],
        };
        let s = assemble_text("t", BODY, &[("N", 32), ("FAST", 1)], &[hook]).unwrap();
        assert!(s.text.contains("1.0") && !s.text.contains("2.0"));
        assert_eq!(s.workgroup_size, [32, 1, 1]);
        let at: Vec<(&str, u32)> = s.bindings.iter().map(|b| (b.name.as_str(), b.index)).collect();
        assert_eq!(at, [("y", 1), ("e0", 2)]);
        let plain = assemble_text("t", BODY, &[("N", 32)], &[]).unwrap();
        assert!(plain.text.contains("2.0") && plain.text.contains("return v;"));
    }

    #[test]
    fn errors_name_file_and_line() {
        let error = |text: &str, hooks: &[Hook]| assemble_text("t", text, &[], hooks).unwrap_err().to_string();
        assert_eq!(error("#if A\n", &[]), "shader t: t.wgsl:1: this `#if` has no `#endif`");
        assert_eq!(error("\n#endif\n", &[]), "shader t: t.wgsl:2: `#endif` without an open `#if`");
        assert_eq!(error("\n#hook map\n", &[]), "shader t: t.wgsl:2: nothing was given for `#hook map`");
        assert_eq!(error("#import lib/none.wgsl\n", &[]), "shader t: t.wgsl:1: there is no shaders/lib/none.wgsl");
        assert_eq!(
            error("#define X\n", &[]),
            "shader t: t.wgsl:1: `#define X` is none of #import, #if, #else, #endif, #hook"
        );
        let hook = Hook { name: "map", code: String::new(), reads: Vec::new() };
        assert_eq!(
            error("\n", &[hook]),
            "shader t: t.wgsl:1: has no line `#hook map`, yet its caller fuses something there"
        );
        let parse = error("const A = 1;\nfn f() { undefined(); }\n", &[]);
        assert!(parse.starts_with("shader t: t:2: "), "{parse}");
    }
}
