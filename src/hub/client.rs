//! Requests: what a repository holds (hf-hub), one file's hash and length (by hand, see [`super`]), its bytes.
//!
//! Every wait polls the stop signal; every request has a time-out; transient failures are retried, a bounded number
//! of times, with jitter.

use super::cache::{Etag, is_commit};
use super::options::HubOptions;
use crate::error::{Error, Result};
use hf_hub::HFError;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use std::pin::pin;
use std::time::{Duration, Instant};

/// How often a wait looks for a stop signal.
const TICK: Duration = Duration::from_millis(100);
/// Longest time for a request without a body to speak of.
const ANSWER: Duration = Duration::from_secs(60);

/// A connection to one endpoint.
pub(super) struct Client {
    pub options: HubOptions,
    runtime: tokio::runtime::Runtime,
    hub: hf_hub::HFClient,
    follow: reqwest::Client,
    stay: reqwest::Client,
}

/// Why an attempt failed.
pub(super) enum Failure {
    /// Another attempt would end the same way.
    Final(Error),
    /// Worth another attempt, after at least this long if the server said so.
    Passing(Error, Option<Duration>),
}

impl Failure {
    pub fn passing(message: impl Into<String>) -> Self {
        Self::Passing(Error::hub(message), None)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self::Final(e)
    }
}

pub(super) type Attempt<T> = std::result::Result<T, Failure>;

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
    pub fn new(options: &HubOptions) -> Result<Self> {
        let failed = |e: &dyn std::fmt::Display| Error::internal(format!("cannot set up the HTTP client: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| failed(&e))?;
        let base = || {
            let mut headers = HeaderMap::new();
            // A compressed body would have another length and another hash.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            let builder = reqwest::Client::builder()
                .user_agent(concat!("eslm-kd/", env!("CARGO_PKG_VERSION")))
                .default_headers(headers)
                .connect_timeout(options.connect_timeout)
                .read_timeout(options.idle_timeout);
            let local = Url::parse(&options.endpoint).is_ok_and(|u| {
                matches!(u.host_str(), Some("localhost" | "[::1]"))
                    || u.host_str().is_some_and(|h| h.starts_with("127."))
            });
            // A server on this machine is not behind the proxy that the environment names.
            if local { builder.no_proxy() } else { builder }
        };
        let follow = base().build().map_err(|e| failed(&e))?;
        let stay = base().redirect(reqwest::redirect::Policy::none()).build().map_err(|e| failed(&e))?;
        let hub = hf_hub::HFClient::builder()
            .endpoint(&options.endpoint)
            .cache_dir(&options.cache)
            .client(follow.clone())
            .retry_max_attempts(0)
            // Without a token hf-hub would look for one in the environment; a value that no header can hold is how it
            // is told that there is none.
            .token(options.token.as_deref().unwrap_or("\n"))
            .build()
            .map_err(|e| failed(&e))?;
        Ok(Self { options: options.clone(), runtime, hub, follow, stay })
    }

    /// The commit and the files of a revision.
    pub fn info(&self, id: &str, revision: &str) -> Attempt<Info> {
        let (owner, name) = hf_hub::split_id(id);
        let model = self.hub.model(owner, name);
        let answer = self.wait(ANSWER, async { model.info().revision(revision).send().await })??;
        let answer = answer.map_err(|e| self.explain(id, revision, e))?;
        let commit = answer.sha.filter(|c| is_commit(c)).map(|c| c.to_lowercase()).ok_or_else(|| {
            Error::hub(format!("{id}: the server names no commit for {revision}; is {} a Hub?", self.options.endpoint))
        })?;
        Ok(Info { commit, files: answer.siblings.unwrap_or_default().into_iter().map(|s| s.rfilename).collect() })
    }

    /// The hash and length of a file. Redirects within the endpoint are followed; the redirect to the CDN is not,
    /// because only the Hub's own answer carries the hash.
    pub fn head(&self, id: &str, commit: &str, file: &str) -> Attempt<Remote> {
        let mut url = self.file_url(id, commit, file)?;
        let (mut linked, mut plain, mut size, mut at) = (None, None, None, None);
        for _ in 0..5 {
            let request = self.authorised(self.stay.head(url.clone()));
            let response = self.wait(ANSWER, async { request.send().await })??.map_err(|e| self.unreachable(&e))?;
            let status = response.status();
            if !status.is_success() && !status.is_redirection() {
                return Err(self.refused(id, file, status, response.headers()));
            }
            let get = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
            linked = get("x-linked-etag").map(str::to_string).or(linked);
            // The ETag and the length of a redirect are its own: of the page, or of a large file's pointer.
            plain = get("etag").filter(|_| status.is_success()).map(str::to_string);
            let length = get("x-linked-size").or(get("content-length").filter(|_| status.is_success()));
            size = length.and_then(|v| v.parse::<u64>().ok()).or(size);
            at = get("x-repo-commit").map(str::to_string).or(at);
            let next = get("location").filter(|_| status.is_redirection()).and_then(|to| url.join(to).ok());
            match next {
                Some(next) if next.origin() == url.origin() && linked.is_none() => url = next,
                _ => break,
            }
        }
        if at.as_ref().is_some_and(|at| !at.eq_ignore_ascii_case(commit)) {
            return Err(Error::hub(format!("{id}: asked for {file} of commit {commit}, was told of another")).into());
        }
        let Some(header) = linked.or(plain) else {
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

    /// Opens the bytes of a file from `start` on. The token goes to the endpoint only: reqwest drops it when a
    /// redirect leaves the host, the port or the scheme.
    pub fn get(&self, id: &str, commit: &str, file: &str, start: u64) -> Attempt<reqwest::Response> {
        let mut request = self.authorised(self.follow.get(self.file_url(id, commit, file)?));
        if start > 0 {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        let response = self.wait(ANSWER, async { request.send().await })??.map_err(|e| self.unreachable(&e))?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            status => Err(self.refused(id, file, status, response.headers())),
        }
    }

    /// The next bytes; None at the end.
    pub fn chunk(&self, response: &mut reqwest::Response) -> Attempt<Option<impl AsRef<[u8]> + use<>>> {
        let limit = self.options.idle_timeout + TICK;
        self.wait(limit, async { response.chunk().await })??.map_err(|e| self.unreachable(&e))
    }

    /// Runs attempts until one succeeds, fails for good, or the retries are used up. A wait polls the stop signal.
    /// The flag of an error says whether it was passing: the Hub may be there another time.
    pub fn retry<T>(&self, mut attempt: impl FnMut() -> Attempt<T>) -> std::result::Result<T, (Error, bool)> {
        for n in 0.. {
            let (error, after) = match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err((error, false)),
                Err(Failure::Passing(error, after)) => (error, after),
            };
            if n >= self.options.retries {
                let again = if n > 0 { format!(" ({} attempts)", n + 1) } else { String::new() };
                return Err((Error::new(error.kind(), format!("{error}{again}")), true));
            }
            self.pause(n, after).map_err(|e| (e, false))?;
        }
        unreachable!("the loop returns")
    }

    fn pause(&self, n: u32, after: Option<Duration>) -> Result<()> {
        let longest = self.options.backoff.saturating_mul(1 << n.min(10)).min(Duration::from_secs(10));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
        let jitter = 0.5 + 0.5 * f64::from(now % 1000) / 1000.0;
        // A server that asks for more than a minute is told no by ending the attempts instead.
        let wait = after.map_or(longest.mul_f64(jitter), |a| a.min(Duration::from_secs(60)));
        let started = Instant::now();
        while let Some(left) = wait.checked_sub(started.elapsed()).filter(|l| !l.is_zero()) {
            crate::signal::check()?;
            std::thread::sleep(left.min(TICK));
        }
        Ok(())
    }

    /// Drives a future (one that starts its timers only when polled), looking for a stop signal on every tick and giving up after `limit`.
    fn wait<T>(&self, limit: Duration, future: impl Future<Output = T>) -> Result<Attempt<T>> {
        let started = Instant::now();
        self.runtime.block_on(async {
            let mut future = pin!(future);
            loop {
                if let Ok(done) = tokio::time::timeout(TICK, future.as_mut()).await {
                    return Ok(Ok(done));
                }
                crate::signal::check()?;
                if started.elapsed() > limit {
                    let text = format!("{}: no answer within {} s", self.options.endpoint, limit.as_secs());
                    return Ok(Err(Failure::passing(text)));
                }
            }
        })
    }

    fn authorised(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.options.token {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    fn file_url(&self, id: &str, commit: &str, file: &str) -> Result<Url> {
        let wrong = || Error::usage(format!("HF_ENDPOINT is not an address: {}", self.options.endpoint));
        let mut url = Url::parse(&self.options.endpoint).map_err(|_| wrong())?;
        url.path_segments_mut()
            .map_err(|()| wrong())?
            .pop_if_empty()
            .extend(id.split('/'))
            .extend(["resolve", commit, file]);
        Ok(url)
    }

    /// The connection failed, or broke.
    fn unreachable(&self, e: &reqwest::Error) -> Failure {
        let mut cause: &dyn std::error::Error = e;
        while let Some(next) = cause.source() {
            cause = next;
        }
        let what = match (e.is_timeout(), e.is_connect()) {
            (true, true) => format!("no connection within {:?}", self.options.connect_timeout),
            (true, false) => format!("no byte within {:?}", self.options.idle_timeout),
            (false, _) => cause.to_string(),
        };
        Failure::passing(format!("cannot reach {}: {what}", self.options.endpoint))
    }

    /// The server answered with an error.
    fn refused(&self, id: &str, file: &str, status: StatusCode, headers: &HeaderMap) -> Failure {
        let after = headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|v| v.trim().parse().ok());
        let code = headers.get("x-error-code").and_then(|v| v.to_str().ok()).unwrap_or_default();
        self.of_status(id, &format!("has no file {file}"), status, code, after.map(Duration::from_secs))
    }

    fn of_status(&self, id: &str, absent: &str, status: StatusCode, code: &str, after: Option<Duration>) -> Failure {
        let token = if self.options.token.is_some() { "the token in use has no access" } else { "no token is set" };
        let page = format!("{}/{id}", self.options.endpoint);
        let text = match status.as_u16() {
            // The Hub answers 401 for repositories that do not exist, so as not to tell which private ones do.
            401 => format!(
                "{id}: not found, or private ({token}). Check the name; for a private repository log in or set HF_TOKEN"
            ),
            403 if code == "GatedRepo" => {
                format!("{id}: its owner grants access on request ({token}). Ask for it at {page}, then set HF_TOKEN")
            }
            403 => format!("{id}: access refused ({token}). See {page}; set HF_TOKEN to a token that may read it"),
            404 => format!("{id}: {absent} at {}. Check the name and the revision", self.options.endpoint),
            408 | 429 | 500..=599 => {
                return Failure::Passing(Error::hub(format!("{id}: the server answered {status}")), after);
            }
            _ => format!("{id}: the server answered {status}"),
        };
        Failure::Final(Error::hub(text))
    }

    /// hf-hub's errors in our words.
    fn explain(&self, id: &str, revision: &str, error: HFError) -> Failure {
        let absent = format!("there is no such model, or no revision {revision} of it,");
        let status = |status, code: Option<&str>, after| self.of_status(id, &absent, status, code.unwrap_or(""), after);
        match error {
            HFError::AuthRequired { context } => status(StatusCode::UNAUTHORIZED, context.error_code.as_deref(), None),
            HFError::Forbidden { context } => status(StatusCode::FORBIDDEN, context.error_code.as_deref(), None),
            HFError::RepoNotFound { .. } | HFError::RevisionNotFound { .. } | HFError::EntryNotFound { .. } => {
                status(StatusCode::NOT_FOUND, None, None)
            }
            HFError::RateLimited { retry_after, .. } => status(StatusCode::TOO_MANY_REQUESTS, None, retry_after),
            HFError::Http { context } => status(context.status, context.error_code.as_deref(), None),
            HFError::Request { source, .. } if source.is_decode() => Failure::passing(format!(
                "{id}: {} did not answer as a Hub does; a proxy or a login page may stand between us and it",
                self.options.endpoint
            )),
            HFError::Request { source, .. } => self.unreachable(&source),
            other => Failure::Final(Error::hub(format!("{id}: {other}"))),
        }
    }
}
