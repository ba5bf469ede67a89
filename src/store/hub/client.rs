//! What is asked of a Hub: what a repository holds, one file's hash and length, its bytes.

use super::exchange::{Answer, Ask, Connections, HOPS, same_origin};
use super::names::{Etag, is_commit};
use super::options::HubOptions;
use super::retry::{Attempt, Failure, retry};
use crate::error::{Error, Result};
use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Deserialize;
use std::time::Duration;
use ureq::http::{Method, StatusCode, Uri};

/// Longest answer of the model API. That of a repository of ten thousand files has one megabyte.
const MOST_INFO: usize = 64 << 20;
/// What a segment of a path spells by numbers (WHATWG URL's path percent-encode set, and `%` and
/// `/`).
const SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'%')
    .add(b'/');

/// A connection to one endpoint.
pub(super) struct Client {
    options: HubOptions,
    /// A copy in the cache may stand in for what a question would tell, so none is repeated.
    hasty: bool,
    api: Api,
    connections: Connections,
}

/// What the model API says about a revision.
#[derive(Debug)]
pub(super) struct Info {
    pub commit: String,
    pub files: Vec<String>,
}

/// What a file must be.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub etag: Etag,
    pub size: Option<u64>,
}

impl Client {
    pub fn new(options: &HubOptions, hasty: bool) -> Result<Self> {
        let connections = Connections::new(options, hasty)?;
        // hf-hub's own cache looks for a token and for a home, and ends the process where there is
        // none; ours is given.
        let api = ApiBuilder::from_cache(Cache::new(options.cache()?.to_path_buf()))
            .with_endpoint(options.endpoint.clone())
            .with_token(None)
            .build()
            .map_err(|e| Error::internal(format!("cannot set up the Hub's API: {e}")))?;
        Ok(Self { options: options.clone(), hasty, api, connections })
    }

    /// The commit and the files of a revision.
    pub fn info(&self, id: &str, revision: &str) -> Attempt<Info> {
        #[derive(Deserialize)]
        struct Model {
            sha: Option<String>,
            siblings: Option<Vec<Sibling>>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let spelt = utf8_percent_encode(revision, SEGMENT).to_string();
        let request =
            self.api.repo(Repo::with_revision(id.into(), RepoType::Model, spelt)).info_request();
        let uri = request.uri_ref().cloned().ok_or_else(|| self.options.bad_endpoint())?;
        let mut answer = self.connections.follow(&Ask { method: Method::GET, uri, start: 0 })?;
        if !answer.status.is_success() {
            return Err(self.refused(
                id,
                &format!("there is no such model, or no revision {revision} of it,"),
                &answer,
            ));
        }
        let body = self.connections.all(&mut answer, MOST_INFO)?;
        let model: Model = serde_json::from_slice(&body).map_err(|_| {
            Failure::passing(format!(
                "{id}: {} did not answer as a Hub does; a proxy or a login page may stand between us and it",
                self.options.endpoint
            ))
        })?;
        let commit =
            model.sha.filter(|c| is_commit(c)).map(|c| c.to_lowercase()).ok_or_else(|| {
                Error::hub(format!(
                    "{id}: the server names no commit for {revision}; is {} a Hub?",
                    self.options.endpoint
                ))
            })?;
        Ok(Info {
            commit,
            files: model.siblings.unwrap_or_default().into_iter().map(|s| s.rfilename).collect(),
        })
    }

    /// The hash and length of a file. Redirects that stay with the Hub are followed, as far as the
    /// answer has no hash yet; the redirect to the CDN is not, because only the Hub knows the hash.
    pub fn head(&self, id: &str, commit: &str, file: &str) -> Attempt<Remote> {
        let mut uri = self.file_uri(id, commit, file)?;
        let (mut linked, mut plain, mut size, mut at) = (None, None, None, None);
        let mut elsewhere = None;
        for hop in 0.. {
            if hop > HOPS {
                return Err(self.connections.in_a_circle());
            }
            let answer =
                self.connections.once(&Ask { method: Method::HEAD, uri: uri.clone(), start: 0 })?;
            let status = answer.status;
            if !status.is_success() && !status.is_redirection() {
                return Err(self.refused(id, &format!("has no file {file}"), &answer));
            }
            let get = |name: &str| answer.header(name);
            linked = get("x-linked-etag").map(str::to_string).or(linked);
            // The ETag and the length of a redirect are its own: of the page, or of a large file's
            // pointer.
            plain = get("etag").filter(|_| status.is_success()).map(str::to_string);
            let length =
                get("x-linked-size").or(get("content-length").filter(|_| status.is_success()));
            size = length.and_then(|v| v.parse::<u64>().ok()).or(size);
            at = get("x-repo-commit").map(str::to_string).or(at);
            match answer.location() {
                _ if linked.is_some() => break,
                Some(next) if same_origin(&next, &uri) || self.connections.is_hub(&next) => {
                    uri = next;
                }
                other => {
                    elsewhere = other;
                    break;
                }
            }
        }
        if at.as_ref().is_some_and(|at| !at.eq_ignore_ascii_case(commit)) {
            return Err(Error::hub(format!(
                "{id}: asked for {file} of commit {commit}, was told of another"
            ))
            .into());
        }
        let Some(header) = linked.or(plain) else {
            if let Some(next) = elsewhere {
                let port = next.port_u16().map_or(String::new(), |port| format!(":{port}"));
                return Err(Failure::barred(format!(
                    "{id}: {} sends us for {file} to {}://{}{port}, which is neither it nor the Hub and whose word on the \
                     file's hash is not taken. Set HF_ENDPOINT to a server that answers itself",
                    self.options.endpoint,
                    next.scheme_str().unwrap_or_default(),
                    next.host().unwrap_or_default(),
                )));
            }
            return Err(Failure::passing(format!(
                "{id}: {} answers for {file} without an ETag; a proxy or a login page may stand between us and the Hub",
                self.options.endpoint
            )));
        };
        let etag = Etag::parse(&header).ok_or_else(|| {
            Error::hub(format!(
                "{id}: the ETag of {file} is {header:?}, expected a SHA-256 or a git blob hash; without one the bytes \
                 cannot be verified and are not taken"
            ))
        })?;
        Ok(Remote { etag, size })
    }

    /// Opens the bytes of a file from `start` on.
    pub fn get(&self, id: &str, commit: &str, file: &str, start: u64) -> Attempt<Answer> {
        let ask = Ask { method: Method::GET, uri: self.file_uri(id, commit, file)?, start };
        let answer = self.connections.follow(&ask)?;
        match answer.status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                Ok(answer)
            }
            _ => Err(self.refused(id, &format!("has no file {file}"), &answer)),
        }
    }

    /// The next bytes; None at the end.
    pub fn chunk(&self, answer: &mut Answer) -> Attempt<Option<Vec<u8>>> {
        self.connections.next(answer)
    }

    /// Attempts until one succeeds, by the options' patience.
    pub fn retry<T>(&self, attempt: impl FnMut() -> Attempt<T>) -> Attempt<T> {
        retry(&self.options, self.options.retries, attempt)
    }

    /// The same of a question, which is asked once where the cache has an answer.
    pub fn ask<T>(&self, attempt: impl FnMut() -> Attempt<T>) -> Attempt<T> {
        retry(&self.options, if self.hasty { 0 } else { self.options.retries }, attempt)
    }

    fn file_uri(&self, id: &str, commit: &str, file: &str) -> Result<Uri> {
        let segment = |text| utf8_percent_encode(text, SEGMENT);
        let id = id.split('/').map(|part| segment(part).to_string()).collect::<Vec<_>>().join("/");
        let text =
            format!("{}/{id}/resolve/{}/{}", self.options.endpoint, segment(commit), segment(file));
        text.parse().map_err(|_| self.options.bad_endpoint())
    }

    /// The server answered with an error.
    fn refused(&self, id: &str, absent: &str, answer: &Answer) -> Failure {
        let after = answer
            .header("retry-after")
            .and_then(|v| v.trim().parse().ok())
            .map(Duration::from_secs);
        let token = if self.options.token.is_some() {
            "the token in use has no access"
        } else {
            "no token is set"
        };
        let page = format!("{}/{id}", self.options.endpoint);
        let status = answer.status;
        // The server's own words are often the better ones.
        let said =
            answer.header("x-error-message").map(|m| m.chars().take(300).collect::<String>());
        let said = said.map_or(String::new(), |m| format!(". The server says: {m:?}"));
        let code = answer.header("x-error-code");
        let text = match status.as_u16() {
            // Whom it knows, the Hub answers 404 for what is not there.
            401 if self.options.token.is_some() && code != Some("RepoNotFound") => format!(
                "{id}: the token in use is invalid or expired. A public model needs none: unset HF_TOKEN or remove the \
                 token file; for a private one log in again{said}"
            ),
            // The Hub answers 401 for repositories that do not exist, so as not to tell which
            // private ones do.
            401 => format!(
                "{id}: not found, or private ({token}). Check the name; for a private repository log in or set HF_TOKEN{said}"
            ),
            403 if code == Some("GatedRepo") => {
                format!(
                    "{id}: its owner grants access on request ({token}). Ask for it at {page}, then set HF_TOKEN{said}"
                )
            }
            403 => format!(
                "{id}: access refused ({token}). See {page}; set HF_TOKEN to a token that may read it{said}"
            ),
            404 => format!(
                "{id}: {absent} at {}. Check the name and the revision",
                self.options.endpoint
            ),
            408 | 429 | 500..=599 => {
                return Failure::Passing(
                    Error::hub(format!("{id}: the server answered {status}")),
                    after,
                );
            }
            _ => format!("{id}: the server answered {status}{said}"),
        };
        match status.as_u16() {
            // It is about us, not about the model.
            401 | 403 => Failure::barred(text),
            _ => Failure::Final(Error::hub(text)),
        }
    }
}
