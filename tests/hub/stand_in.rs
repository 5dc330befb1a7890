//! A hub on this machine: as much of the protocol as a download needs, and every way in which it goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the hub behaves; changed by tests between requests.
#[derive(Default, Clone)]
pub struct Behaviour {
    /// Files of org/model, by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Those that lie elsewhere, under their sha256, and are redirected to.
    pub large: BTreeSet<String>,
    /// Cuts so many downloads after so many bytes; shorter ones come whole.
    pub cuts: (usize, usize),
    /// Stops so many downloads after so many bytes, without a word.
    pub stalls: (usize, usize),
    /// Gives the whole file, whatever range was asked for.
    pub ignores_ranges: bool,
    /// Damages so many downloads by one bit.
    pub damages: usize,
    /// Answers that begin with this path get this status and code, so many times.
    pub refuses: Option<(String, u16, &'static str, usize)>,
    /// Says this instead of the etag or of the commit.
    pub etag: Option<String>,
    pub commit: Option<String>,
    /// Further names in the listing.
    pub listed: Vec<String>,
}

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

pub struct StandIn {
    pub endpoint: String,
    pub behaviour: Arc<Mutex<Behaviour>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl StandIn {
    /// A hub with these files. Its thread ends with the tests.
    pub fn new(files: &[(&str, &[u8])]) -> StandIn {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(name, content)| (name.to_string(), content.to_vec())).collect();
        let large = ["model.safetensors".to_string(), "a.gguf".to_string()].into();
        let behaviour = Arc::new(Mutex::new(Behaviour { files, large, ..Behaviour::default() }));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (its, noted) = (behaviour.clone(), requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (its, noted) = (its.clone(), noted.clone());
                // A client that leaves is its own business.
                std::thread::spawn(move || drop(answer(stream, &its, &noted)));
            }
        });
        StandIn { endpoint, behaviour, requests }
    }

    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

pub fn sha256(content: &[u8]) -> String {
    ring::digest::digest(&ring::digest::SHA256, content).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn read(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let mut request = Request { path: first.split(' ').nth(1).unwrap_or_default().into(), ..Request::default() };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.into()),
            "authorization" => request.authorization = Some(value.into()),
            _ => {}
        }
    }
    Ok(request)
}

fn answer(mut stream: TcpStream, behaviour: &Mutex<Behaviour>, noted: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let request = read(&stream)?;
    noted.lock().unwrap().push(request.clone());
    let mut b = behaviour.lock().unwrap();
    if let Some((path, status, code, times)) = &mut b.refuses
        && request.path.starts_with(path.as_str())
        && *times > 0
    {
        *times -= 1;
        return write!(
            stream,
            "HTTP/1.1 {status} No\r\nX-Error-Code: {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    let parts: Vec<&str> = request.path.split('/').skip(1).collect();
    match parts[..] {
        ["api", "models", "org", "model", "revision", "main" | "v1" | COMMIT]
        | ["api", "datasets", "org", "data", "revision", "main" | COMMIT] => {
            let names = b.files.keys().chain(&b.listed);
            let siblings: Vec<_> = names.map(|f| serde_json::json!({ "rfilename": f, "more": 1 })).collect();
            let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings, "private": false }).to_string();
            head(&mut stream, "200 OK", &format!("Content-Length: {}\r\n", body.len()))?;
            stream.write_all(body.as_bytes())
        }
        ["org", "model", "resolve", COMMIT, ref file @ ..]
        | ["datasets", "org", "data", "resolve", COMMIT, ref file @ ..] => {
            let name = file.join("/");
            let Some(content) = b.files.get(&name).cloned() else { return missing(stream, "EntryNotFound") };
            let commit = b.commit.clone().unwrap_or(COMMIT.into());
            if b.large.contains(&name) {
                let sha = sha256(&content);
                let etag = b.etag.clone().unwrap_or(sha.clone());
                let port = stream.local_addr()?.port();
                let headers = format!(
                    "X-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {}\r\nX-Repo-Commit: {commit}\r\n\
                     Location: http://localhost:{port}/cdn/{sha}?signed=1\r\nContent-Length: 0\r\n",
                    content.len()
                );
                return head(&mut stream, "302 Found", &headers);
            }
            let etag = b.etag.clone().unwrap_or(format!("{:040x}", content.len()));
            let extra = format!("ETag: \"{etag}\"\r\nX-Repo-Commit: {commit}\r\n");
            body(stream, &request, content, &extra, &mut b)
        }
        ["cdn", sha] => {
            let sha = sha.trim_end_matches("?signed=1");
            let Some(content) = b.files.values().find(|c| sha256(c) == sha).cloned() else {
                return missing(stream, "EntryNotFound");
            };
            body(stream, &request, content, "ETag: \"another\"\r\n", &mut b)
        }
        ["api", "models", "org", "model", "revision", ..] => missing(stream, "RevisionNotFound"),
        _ => missing(stream, "RepoNotFound"),
    }
}

fn head(stream: &mut TcpStream, status: &str, headers: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n")
}

fn missing(mut stream: TcpStream, code: &str) -> std::io::Result<()> {
    head(&mut stream, "404 Not Found", &format!("X-Error-Code: {code}\r\nContent-Length: 0\r\n"))
}

fn body(
    mut stream: TcpStream,
    request: &Request,
    mut content: Vec<u8>,
    extra: &str,
    b: &mut Behaviour,
) -> std::io::Result<()> {
    let size = content.len();
    let range = request.range.as_deref().and_then(|r| r.strip_prefix("bytes=")?.split_once('-'));
    let probe = range == Some(("0", "0"));
    let (first, end) = match range {
        Some((first, last)) if !b.ignores_ranges || probe => {
            (first.parse().unwrap(), last.parse().map_or(size, |last: usize| (last + 1).min(size)))
        }
        _ => (0, size),
    };
    if first >= size {
        return head(&mut stream, "416 Range Not Satisfiable", "Content-Length: 0\r\n");
    }
    if !probe && b.damages > 0 {
        b.damages -= 1;
        content[size - 1] ^= 1;
    }
    let part = &content[first..end];
    let status = if range.is_some() && (!b.ignores_ranges || probe) { "206 Partial Content" } else { "200 OK" };
    let range = format!("Content-Range: bytes {first}-{}/{size}\r\n", end - 1);
    head(&mut stream, status, &format!("{extra}{range}Content-Length: {}\r\n", part.len()))?;
    if !probe && b.cuts.0 > 0 && part.len() > b.cuts.1 {
        b.cuts.0 -= 1;
        return stream.write_all(&part[..b.cuts.1]);
    }
    if !probe && b.stalls.0 > 0 && part.len() > b.stalls.1 {
        b.stalls.0 -= 1;
        stream.write_all(&part[..b.stalls.1])?;
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_secs(60));
            drop(stream);
        });
        return Ok(());
    }
    stream.write_all(part)
}
