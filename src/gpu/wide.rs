//! Storage read and written by 64 bits, for drivers whose lanes are those of a CPU's SIMD registers: Mesa's llvmpipe makes
//! of a load one scalar load a lane and component, each with a branch on the execution mask and one on the buffer's size,
//! so that half as many cost half (docs/log.md).

/// What stands at the end of a shader that was rewritten.
const CONVERSIONS: &str = "
fn wide_load(v: vec2<u64>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(u32(v.x), u32(v.x >> 32u), u32(v.y), u32(v.y >> 32u)));
}
fn wide_store(v: vec4<f32>) -> vec2<u64> {
    let w = bitcast<vec4<u32>>(v);
    return vec2<u64>(u64(w.x) | (u64(w.y) << 32u), u64(w.z) | (u64(w.w) << 32u));
}
";

/// The same shader with its storage of `vec4<f32>` as pairs of `u64`, which are as wide and lie as these do. Storage whose
/// name means something else as well, or of whose elements single components are written, stays as it is. It does not know
/// block comments, and of statements only those that end in a semicolon.
pub fn widen(text: &str) -> String {
    let text: String = text.lines().map(|l| l.split("//").next().unwrap_or("").to_string() + "\n").collect();
    let names = vectors(&text);
    let mut out = text.clone();
    for name in names {
        let Some(widened) = accesses(&out, &name) else { continue };
        out = widened.lines().map(|l| declare(l, &name) + "\n").collect();
    }
    if out == text { out } else { out + CONVERSIONS }
}

/// Names of storage variables that are arrays of `vec4<f32>`.
fn vectors(text: &str) -> Vec<String> {
    let mut elements = vec!["vec4<f32>"];
    // An alias may be one of an alias.
    for (name, of) in text.lines().filter_map(|l| l.trim().strip_prefix("alias ")?.strip_suffix(';')?.split_once(" = "))
    {
        if elements.contains(&of) {
            elements.push(name);
        }
    }
    let variable = |line: &str| {
        let (name, ty) = line.split_once("var<storage")?.1.split_once('>')?.1.split_once(':')?;
        let element = ty.trim().strip_prefix("array<")?.strip_suffix(">;")?;
        elements.contains(&element).then(|| name.trim().to_string())
    };
    text.lines().filter_map(variable).filter(|name| has_one_meaning(text, name)).collect()
}

/// True unless a local variable or a parameter has the storage variable's name.
fn has_one_meaning(text: &str, name: &str) -> bool {
    words(text, name).filter(|&at| declares(text, name, at)).count() == 1
}

fn declares(text: &str, name: &str, at: usize) -> bool {
    let before = text[..at].trim_end();
    let is_keyword = |word: &str| before.strip_suffix(word).is_some_and(|b| !b.ends_with(is_word));
    let after = text[at + name.len()..].trim_start();
    is_keyword("let") || is_keyword("var") || is_keyword("const") || after.starts_with(':')
}

/// Where a name stands as a word of its own, and not as a member.
fn words<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(name).map(|(at, _)| at).filter(move |&at| {
        !text[..at].ends_with(|c| is_word(c) || c == '.') && !text[at + name.len()..].starts_with(is_word)
    })
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn declare(line: &str, name: &str) -> String {
    match line.split_once("var<storage") {
        Some((before, after)) if after.split_once('>').is_some_and(|(_, n)| words(n, name).next() == Some(1)) => {
            let head = after.split_once("array<").map_or(after, |(head, _)| head);
            format!("{before}var<storage{head}array<vec2<u64>>;")
        }
        _ => line.to_string(),
    }
}

/// Every `name[..]` as a load or a store; none if an element is used in some other way.
fn accesses(text: &str, name: &str) -> Option<String> {
    let mut out = String::new();
    let mut done = 0;
    let starts: Vec<usize> = words(text, name).collect();
    for at in starts {
        let open = at + name.len();
        if at < done || !text[open..].starts_with('[') {
            continue;
        }
        let close = open + closing(&text[open..])?;
        let index = accesses(&text[open..close], name)?;
        let element = format!("{name}{index}");
        out.push_str(&text[done..at]);
        let rest = &text[close..];
        let sign = rest.trim_start();
        let offset = close + (rest.len() - sign.len());
        let compound = ['+', '-', '*', '/'].into_iter().find(|&c| sign.starts_with(c) && sign[1..].starts_with('='));
        let is_store = sign.starts_with('=') && !sign.starts_with("==");
        if is_store || compound.is_some() {
            let from = offset + if is_store { 1 } else { 2 };
            let end = from + text[from..].find(';')?;
            let value = accesses(text[from..end].trim(), name)?;
            match compound {
                Some(c) => out.push_str(&format!("{element} = wide_store(wide_load({element}) {c} ({value}))")),
                None => out.push_str(&format!("{element} = wide_store({value})")),
            }
            done = end;
        } else {
            let writes_component = sign.strip_prefix('.').is_some_and(|member| {
                let after = member.trim_start_matches(is_word).trim_start();
                after.starts_with('=') && !after.starts_with("==")
                    || after.get(1..2) == Some("=") && !after.starts_with(['=', '!', '<', '>'])
            });
            if writes_component || text[..at].ends_with('&') {
                return None;
            }
            out.push_str(&format!("wide_load({element})"));
            done = close;
        }
    }
    out.push_str(&text[done..]);
    Some(out)
}

/// The length of a text in brackets that begins with the opening one.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' if depth == 1 => return Some(i + 1),
            ']' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> String {
        widen(text).replace(CONVERSIONS, "")
    }

    const HEAD: &str = "alias Item = vec4<f32>;\n@group(0) @binding(1) var<storage, read_write> x: array<Item>;\n";
    const WIDE: &str = "alias Item = vec4<f32>;\n@group(0) @binding(1) var<storage, read_write> x: array<vec2<u64>>;\n";

    #[test]
    fn loads_and_stores_are_converted() {
        for (before, after) in [
            ("let v = x[i + 1u] * x[j[2]];", "let v = wide_load(x[i + 1u]) * wide_load(x[j[2]]);"),
            ("x[i] = a + x[x_of[i]];", "x[i] = wide_store(a + wide_load(x[x_of[i]]));"),
            ("x[i]  += a;", "x[i] = wide_store(wide_load(x[i]) + (a));"),
            ("let s = x[i].y; // x[i]", "let s = wide_load(x[i]).y; "),
            ("let t = x[u32(x[0].x)];", "let t = wide_load(x[u32(wide_load(x[0]).x)]);"),
            ("if x[i].y == 1.0 { p.x = x[i].z; }", "if wide_load(x[i]).y == 1.0 { p.x = wide_load(x[i]).z; }"),
        ] {
            assert_eq!(body(&format!("{HEAD}{before}\n")), format!("{WIDE}{after}\n"));
        }
    }

    #[test]
    fn an_alias_of_an_alias_is_what_that_is() {
        let text = HEAD.replacen("\n", "\nalias Written = Item;\n", 1).replace("array<Item>", "array<Written>");
        let told = body(&format!("{text}x[0] = x[1];\n"));
        assert!(told.contains("array<vec2<u64>>;") && told.contains("x[0] = wide_store(wide_load(x[1]));"), "{told}");
    }

    #[test]
    fn what_is_not_plain_stays() {
        for text in ["x[i].y = 1.0;", "x[i].y += 1.0;", "let p = &x[i];", "let x = 1;", "fn f(x: u32) {}"] {
            assert_eq!(widen(&format!("{HEAD}{text}\n")), format!("{HEAD}{text}\n"), "{text}");
        }
        let floats = "@group(0) @binding(1) var<storage> y: array<f32>;\nfn f() -> f32 { return y[0]; }\n";
        assert_eq!(widen(floats), floats);
    }
}
