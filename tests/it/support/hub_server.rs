//! A small server that speaks the Hub's protocol on the loopback interface, with faults on demand.
//!
//! * `GET /api/models/{repo}` and `.../revision/{rev}`: commit and siblings.
//! * `HEAD|GET /{repo}/resolve/{rev}/{file}`: small files through a relative 307 (as the Hub does),
//!   with the git blob hash as ETag; large ones (safetensors) through a 302 to another host
//!   (another port here), with X-Linked-Etag and X-Linked-Size. Ranges are honoured.
//!
//! Asked with whole addresses (`GET http://host/path`), it answers as a proxy in front of such a
//! host would.
//!
//! Used by the tests, and by `examples/hub_server.rs` to serve folders by hand; files are streamed
//! from disk.

// The tests and the example each use a part of it.
#![allow(dead_code)]

use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a stalled socket stays open.
const STALL: Duration = Duration::from_secs(20);

/// Which request a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    Info,
    Head,
    /// The request that carries the bytes.
    Body,
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// This status, and a header or two.
    Status(u16, &'static str),
    /// 200 and a login page.
    Html,
    /// The full length announced, the connection cut after so many bytes.
    Cut(usize),
    /// A shorter body, honestly announced.
    Short(usize),
    /// No length announced, and a shorter body.
    Unannounced(usize),
    /// The right length, one bit wrong.
    Flipped,
    /// The whole file, whatever the range.
    RangeIgnored,
    /// Nothing more after so many bytes; nothing at all where it is not a body that is asked for.
    Stall(usize),
    /// So many bytes, then so many milliseconds of nothing, then the rest.
    Pause(usize, u64),
}

/// A fault and how often it happens.
#[derive(Debug, Clone)]
pub struct Fault {
    pub on: On,
    pub file: String,
    pub kind: Kind,
    pub times: usize,
}

/// One request as the server saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub cdn: bool,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

#[derive(Clone)]
enum Body {
    SelectionState(Arc<Vec<u8>>),
    Disk(PathBuf, u64),
}

#[derive(Clone)]
struct Entry {
    body: Body,
    /// SHA-256 for large files, git blob hash for small ones.
    etag: String,
    large: bool,
}

#[derive(Clone, Default)]
struct Repo {
    commit: String,
    files: BTreeMap<String, Entry>,
}

#[derive(Default)]
struct State {
    repos: Mutex<BTreeMap<String, Repo>>,
    faults: Mutex<Vec<Fault>>,
    seen: Mutex<Vec<Seen>>,
    cdn: Mutex<String>,
}

/// The running server; its threads end with the process.
pub struct HubServer {
    pub endpoint: String,
    state: Arc<State>,
}

impl HubServer {
    /// Listens on a port of 127.0.0.1; 0 takes a free one.
    pub fn start(port: u16) -> std::io::Result<Self> {
        let state = Arc::new(State::default());
        let listen = |port, cdn| -> std::io::Result<String> {
            let listener = TcpListener::bind(("127.0.0.1", port))?;
            let address = format!("http://{}", listener.local_addr()?);
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    std::thread::spawn(move || drop(serve(&state, stream, cdn)));
                }
            });
            Ok(address)
        };
        let endpoint = listen(port, false)?;
        *state.cdn.lock().unwrap() = listen(0, true)?;
        Ok(Self { endpoint, state })
    }

    /// Serves these bytes as a repository's files; returns the commit.
    pub fn add_repo(&self, id: &str, files: &[(&str, Vec<u8>)]) -> String {
        let entry = |(name, bytes): &(&str, Vec<u8>)| {
            let body = Body::SelectionState(Arc::new(bytes.clone()));
            (name.to_string(), Entry::new(name, body).expect("memory can be read"))
        };
        self.insert(id, files.iter().map(entry).collect())
    }

    /// Serves the plain files of a folder as a repository; returns the commit.
    pub fn add_folder(&self, id: &str, dir: &Path) -> std::io::Result<String> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(dir)? {
            let (path, name) =
                { entry.map(|e| (e.path(), e.file_name().to_string_lossy().into_owned()))? };
            if path.is_file() {
                let body = Body::Disk(path.clone(), path.metadata()?.len());
                files.insert(name.clone(), Entry::new(&name, body)?);
            }
        }
        Ok(self.insert(id, files))
    }

    fn insert(&self, id: &str, files: BTreeMap<String, Entry>) -> String {
        let mut hash = Sha1::new();
        files.iter().for_each(|(name, entry)| hash.update(format!("{name} {}\n", entry.etag)));
        let commit = hex(&hash.finalize());
        self.state
            .repos
            .lock()
            .unwrap()
            .insert(id.to_string(), Repo { commit: commit.clone(), files });
        commit
    }

    pub fn fault(&self, on: On, file: &str, kind: Kind, times: usize) {
        self.state.faults.lock().unwrap().push(Fault { on, file: file.to_string(), kind, times });
    }

    /// Says that the large files lie at another address.
    pub fn cdn_at(&self, address: &str) {
        *self.state.cdn.lock().unwrap() = address.to_string();
    }

    /// Waits for a request for the bytes of a file; the requests stay to be seen.
    pub fn wait_for_body(&self, file: &str) {
        let asked = |r: &Seen| r.cdn && r.method == "GET" && r.path.contains(file);
        let give_up = Instant::now() + Duration::from_secs(60);
        while !self.state.seen.lock().unwrap().iter().any(asked) {
            assert!(Instant::now() < give_up, "nobody asked for {file}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The requests since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }
}

impl Entry {
    fn new(name: &str, body: Body) -> std::io::Result<Self> {
        let large = name.ends_with(".safetensors") || name.ends_with(".bin");
        let (mut sha256, mut sha1) = (Sha256::new(), Sha1::new());
        sha1.update(format!("blob {}\0", body.len()));
        let mut from = body.open(0)?;
        let mut block = vec![0; 1 << 20];
        loop {
            match from.read(&mut block)? {
                0 => break,
                n if large => sha256.update(&block[..n]),
                n => sha1.update(&block[..n]),
            }
        }
        let etag = if large { hex(&sha256.finalize()) } else { hex(&sha1.finalize()) };
        Ok(Self { body, etag, large })
    }
}

impl Body {
    fn len(&self) -> u64 {
        match self {
            Body::SelectionState(bytes) => bytes.len() as u64,
            Body::Disk(_, len) => *len,
        }
    }

    fn open(&self, at: u64) -> std::io::Result<Box<dyn Read>> {
        Ok(match self {
            Body::SelectionState(bytes) => {
                Box::new(std::io::Cursor::new(bytes[at as usize..].to_vec()))
            }
            Body::Disk(path, _) => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(at))?;
                Box::new(file)
            }
        })
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl State {
    /// Takes the next fault for this request, if one is due.
    fn next_fault(&self, on: On, file: &str) -> Option<Kind> {
        let mut faults = self.faults.lock().unwrap();
        let fault = faults.iter_mut().find(|f| f.on == on && f.file == file && f.times > 0)?;
        fault.times -= 1;
        Some(fault.kind.clone())
    }

    /// (repo, commit, entry) of `org/name`, revision and file.
    fn find(&self, id: &str, revision: &str, file: &str) -> Option<(String, Entry)> {
        let repos = self.repos.lock().unwrap();
        let repo = repos.get(id).filter(|r| revision == "main" || revision == r.commit)?;
        Some((repo.commit.clone(), repo.files.get(file)?.clone()))
    }
}

fn serve(state: &State, stream: TcpStream, cdn: bool) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) =
        (words.next().unwrap_or("").to_string(), words.next().unwrap_or("").to_string());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.trim().to_string(), value.trim().to_string()));
        }
    }
    let seen = Seen { method, path, headers, cdn };
    state.seen.lock().unwrap().push(seen.clone());
    answer(state, &seen, &stream)
}

fn answer(state: &State, seen: &Seen, mut to: &TcpStream) -> std::io::Result<()> {
    let path = seen.path.split('?').next().unwrap_or("");
    // What a proxy is asked names the host, too.
    let path = path
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .map_or(path, |(_, path)| path);
    let path = path.trim_start_matches('/').replace("%2F", "/");
    if let Some(rest) = path.strip_prefix("api/models/") {
        let (id, revision) = rest.split_once("/revision/").unwrap_or((rest, "main"));
        return info(state, to, id, revision);
    }
    // cdn/{id}/resolve/..., api/resolve-cache/models/{id}/resolve/... or {id}/resolve/...
    let direct = path.strip_prefix("cdn/").or(path.strip_prefix("api/resolve-cache/models/"));
    let parts = direct.unwrap_or(&path).split_once("/resolve/");
    let found = parts.and_then(|(id, rest)| {
        let (revision, file) = rest.split_once('/')?;
        state
            .find(id, revision, file)
            .map(|(commit, entry)| (id.to_string(), commit, entry, file.to_string()))
    });
    let Some((id, commit, entry, file)) = found else {
        return simple(to, "404 Not Found", "X-Error-Code: EntryNotFound\r\n", b"Entry not found");
    };
    let head = seen.method == "HEAD";
    // The request that the client sends first is the one that a HEAD fault hits; bytes leave from
    // the last hop.
    let fault = match (head, direct.is_some()) {
        (true, false) => state.next_fault(On::Head, &file),
        (false, true) => state.next_fault(On::Body, &file),
        _ => None,
    };
    match &fault {
        Some(Kind::Status(status, extra)) => {
            let reason = format!("{status} Fault");
            return simple(to, &reason, extra, b"<html>an error page</html>");
        }
        Some(Kind::Stall(_)) if head => {
            std::thread::sleep(STALL);
            return Ok(());
        }
        Some(Kind::Html) => {
            return simple(
                to,
                "200 OK",
                "Content-Type: text/html\r\n",
                b"<html>Please log in</html>",
            );
        }
        _ => {}
    }
    let mut extra = format!("X-Repo-Commit: {commit}\r\nAccept-Ranges: bytes\r\n");
    if direct.is_none() {
        // A redirect's own ETag is not the file's.
        extra += &format!("ETag: \"{}\"\r\n", "f".repeat(40));
        let (status, location) = if entry.large {
            extra += &format!(
                "X-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\n",
                entry.etag,
                entry.body.len()
            );
            (
                "302 Found",
                format!("{}/cdn/{id}/resolve/{commit}/{file}?sig=1", state.cdn.lock().unwrap()),
            )
        } else {
            (
                "307 Temporary Redirect",
                format!("/api/resolve-cache/models/{id}/resolve/{commit}/{file}"),
            )
        };
        return simple(to, status, &format!("{extra}Location: {location}\r\n"), b"Redirecting");
    }
    if seen.cdn {
        // The CDN knows nothing of repositories.
        extra = "ETag: \"cdn-own\"\r\n".into();
    } else {
        extra += &format!("ETag: \"{}\"\r\n", entry.etag);
    }
    let len = entry.body.len();
    let start = seen
        .header("range")
        .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<u64>().ok());
    let start = start.filter(|_| fault != Some(Kind::RangeIgnored)).unwrap_or(0);
    if start > len {
        return simple(to, "416 Range Not Satisfiable", "", b"");
    }
    let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
    if start > 0 {
        extra += &format!("Content-Range: bytes {start}-{}/{len}\r\n", len - 1);
    }
    let (announced, sent) = match fault {
        Some(Kind::Short(n)) => (Some(n as u64), n as u64),
        Some(Kind::Unannounced(n)) => (None, n as u64),
        Some(Kind::Cut(n) | Kind::Stall(n)) => (Some(len - start), n as u64),
        _ => (Some(len - start), len - start),
    };
    let length = announced.map_or(String::new(), |n| format!("Content-Length: {n}\r\n"));
    write!(to, "HTTP/1.1 {status}\r\n{extra}{length}Connection: close\r\n\r\n")?;
    if head {
        return Ok(());
    }
    let mut body = entry.body.open(start)?.take(sent);
    if fault == Some(Kind::Flipped) {
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        return to.write_all(&bytes);
    }
    if let Some(Kind::Pause(n, milliseconds)) = fault {
        std::io::copy(&mut body.by_ref().take(n as u64), &mut to)?;
        std::thread::sleep(Duration::from_millis(milliseconds));
    }
    std::io::copy(&mut body, &mut to)?;
    to.flush()?;
    if matches!(fault, Some(Kind::Stall(_))) {
        std::thread::sleep(STALL);
    }
    Ok(())
}

fn info(state: &State, to: &TcpStream, id: &str, revision: &str) -> std::io::Result<()> {
    match state.next_fault(On::Info, "") {
        Some(Kind::Status(status, extra)) => {
            return simple(to, &format!("{status} Fault"), extra, b"{}");
        }
        Some(Kind::Stall(_)) => {
            std::thread::sleep(STALL);
            return Ok(());
        }
        Some(_) => {
            return simple(
                to,
                "200 OK",
                "Content-Type: text/html\r\n",
                b"<html>Please log in</html>",
            );
        }
        None => {}
    }
    let repo = state.repos.lock().unwrap().get(id).cloned();
    let Some(repo) = repo.filter(|r| revision == "main" || revision == r.commit) else {
        // The Hub does not tell strangers whether a repository exists.
        return simple(
            to,
            "401 Unauthorized",
            "X-Error-Code: RepoNotFound\r\n",
            b"{\"error\":\"Invalid username\"}",
        );
    };
    let siblings: Vec<_> = repo.files.keys().map(|f| serde_json::json!({"rfilename": f})).collect();
    let json = serde_json::json!({"_id": "0", "id": id, "sha": repo.commit, "siblings": siblings})
        .to_string();
    simple(to, "200 OK", "Content-Type: application/json\r\n", json.as_bytes())
}

fn simple(mut to: &TcpStream, status: &str, extra: &str, body: &[u8]) -> std::io::Result<()> {
    write!(
        to,
        "HTTP/1.1 {status}\r\n{extra}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    to.write_all(body)
}
