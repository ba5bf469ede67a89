//! One HTTP exchange, on a thread of its own: ureq blocks, and a wait must hear a stop signal
//! within a tick. A thread that nobody waits for any more ends with its own time-outs.

use super::options::{HUB, HubOptions};
use super::proxy::{AbsoluteForm, Proxies, ToProxy};
use super::retry::{Attempt, Failure, TICK};
use super::roots::roots;
use crate::error::{Error, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use ureq::config::Config;
use ureq::http::header::{AUTHORIZATION, LOCATION, PROXY_AUTHORIZATION, RANGE};
use ureq::http::{HeaderMap, Method, Request, StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::transport::{Connector, TcpConnector};
use ureq::{Agent, Proxy, ProxyProtocol, Timeout};

/// Longest time for the headers of an answer.
const ANSWER: Duration = Duration::from_secs(60);
/// The same where a copy in the cache may stand in for the answer.
const HASTY_ANSWER: Duration = Duration::from_secs(10);
/// Bytes read at once, and how many such reads may lie ready before the reader waits.
const BLOCK: usize = 256 << 10;
const READY: usize = 4;
/// Redirects followed.
pub(super) const HOPS: usize = 10;

/// What is asked.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub method: Method,
    pub uri: Uri,
    /// First byte wanted.
    pub start: u64,
}

/// The answer: its headers, and its bytes as they come.
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Where it came from, after redirects.
    pub uri: Uri,
    blocks: Receiver<io::Result<Vec<u8>>>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    pub fn content_length(&self) -> Option<u64> {
        self.header("content-length").and_then(|v| v.parse().ok())
    }

    /// Where the answer sends us.
    pub fn location(&self) -> Option<Uri> {
        let to = self.status.is_redirection().then(|| self.header(LOCATION.as_str())).flatten()?;
        join(&self.uri, to)
    }
}

/// The connections that a run of requests shares. Each is made when it is first needed: plain http
/// needs no certificates, and a host without a proxy no proxy.
pub(super) struct Connections {
    options: HubOptions,
    endpoint: Uri,
    /// Longest time for the headers of an answer.
    answer: Duration,
    proxies: Proxies,
    roots: OnceLock<std::result::Result<RootCerts, String>>,
    made: Mutex<Vec<(Way, Through)>>,
}

/// What decides how a host is asked: whether by https, and through which proxy.
type Way = (bool, Option<String>);

/// How to ask a host.
#[derive(Clone)]
struct Through {
    agent: Agent,
    /// What a proxy that reads plain requests wants to be shown; for a tunnel, ureq sees to it.
    credentials: Option<String>,
}

impl Connections {
    /// `hasty` waits less long for an answer.
    pub fn new(options: &HubOptions, hasty: bool) -> Result<Self> {
        Ok(Self {
            endpoint: options.address()?,
            answer: if hasty { HASTY_ANSWER } else { ANSWER },
            proxies: Proxies::from_vars(|name| std::env::var(name).ok()),
            roots: OnceLock::new(),
            made: Mutex::new(Vec::new()),
            options: options.clone(),
        })
    }

    /// Whether the token is for this address: the endpoint, or the Hub that a mirror sends us to
    /// (Python's rule), or the endpoint by https.
    pub fn is_hub(&self, uri: &Uri) -> bool {
        let default_port = |u: &Uri| matches!(u.port_u16(), None | Some(80 | 443));
        let secured = self.endpoint.scheme_str() == Some("http")
            && uri.scheme_str() == Some("https")
            && default_port(&self.endpoint)
            && default_port(uri)
            && self.endpoint.host() == uri.host();
        let hubs = [HUB, "https://hf.co"].map(Uri::from_static);
        secured || same_origin(uri, &self.endpoint) || hubs.iter().any(|hub| same_origin(uri, hub))
    }

    /// Asks once. Redirects are answers.
    pub fn once(&self, ask: &Ask) -> Attempt<Answer> {
        let Through { agent, credentials } = self.through(&ask.uri)?;
        let mut request = Request::builder().method(&ask.method).uri(&ask.uri);
        if ask.start > 0 {
            request = request.header(RANGE, format!("bytes={}-", ask.start));
        }
        if let Some(token) = self.options.token.as_ref().filter(|_| self.is_hub(&ask.uri)) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(credentials) = credentials {
            request = request.header(PROXY_AUTHORIZATION, credentials);
        }
        let request =
            request.body(()).map_err(|e| Error::hub(format!("cannot ask for {}: {e}", ask.uri)))?;
        let (tell, told) = sync_channel(1);
        let (send, blocks) = sync_channel(READY);
        let read = move || {
            let body = match agent.run(request) {
                Err(e) => return drop(tell.send(Err(e))),
                Ok(response) => {
                    let (parts, body) = response.into_parts();
                    if tell.send(Ok((parts.status, parts.headers))).is_err() {
                        return;
                    }
                    body
                }
            };
            let mut body = body.into_reader();
            loop {
                let mut block = vec![0; BLOCK];
                let block = match body.read(&mut block) {
                    Ok(0) => return,
                    Ok(n) => {
                        block.truncate(n);
                        Ok(block)
                    }
                    Err(e) => Err(e),
                };
                let over = block.is_err();
                if send.send(block).is_err() || over {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("hub".into())
            .spawn(read)
            .map_err(|e| Error::internal(format!("cannot start a thread for a download: {e}")))?;
        let (status, headers) = self
            .wait(&told, self.answer)??
            .ok_or_else(|| Error::internal("the thread of a download ended without an answer"))?
            .map_err(|e| self.unreachable(&ask.uri, &e))?;
        Ok(Answer { status, headers, uri: ask.uri.clone(), blocks })
    }

    /// Asks, and goes where the answer sends us. The token stays with the Hub.
    pub fn follow(&self, ask: &Ask) -> Attempt<Answer> {
        let mut ask = ask.clone();
        for _ in 0..HOPS {
            let answer = self.once(&ask)?;
            match answer.location() {
                Some(to) => ask.uri = to,
                None => return Ok(answer),
            }
        }
        Err(self.in_a_circle())
    }

    /// Nobody sends us so often with good reason.
    pub fn in_a_circle(&self) -> Failure {
        Failure::barred(format!(
            "{}: more than {HOPS} redirects; check HF_ENDPOINT",
            self.options.endpoint
        ))
    }

    /// The next bytes of an answer; None at the end.
    pub fn next(&self, answer: &mut Answer) -> Attempt<Option<Vec<u8>>> {
        let block = self.wait(&answer.blocks, self.options.idle_timeout + ANSWER)??;
        block.transpose().map_err(|e| self.unreachable(&answer.uri, &e.into()))
    }

    /// A small body, whole.
    pub fn all(&self, answer: &mut Answer, most: usize) -> Attempt<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(block) = self.next(answer)? {
            bytes.extend(block);
            if bytes.len() > most {
                return Err(Error::hub(format!(
                    "{}: the answer is longer than {most} bytes",
                    answer.uri
                ))
                .into());
            }
        }
        Ok(bytes)
    }

    /// What the other thread sends next, or None when it has ended. Looks for a stop signal on
    /// every tick.
    fn wait<T>(&self, from: &Receiver<T>, limit: Duration) -> Result<Attempt<Option<T>>> {
        let started = Instant::now();
        loop {
            match from.recv_timeout(TICK) {
                Ok(value) => return Ok(Ok(Some(value))),
                Err(RecvTimeoutError::Disconnected) => return Ok(Ok(None)),
                Err(RecvTimeoutError::Timeout) => {}
            }
            crate::interrupt::check()?;
            if started.elapsed() > limit {
                let text =
                    format!("{}: no answer within {} s", self.options.endpoint, limit.as_secs());
                return Ok(Err(Failure::passing(text)));
            }
        }
    }

    fn through(&self, uri: &Uri) -> Attempt<Through> {
        let secure = uri.scheme_str() == Some("https");
        let proxy = if secure { self.proxies.https() } else { self.proxies.http() };
        let way = (secure, proxy.filter(|_| !self.proxies.exempts(uri)).map(str::to_string));
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, through)) = made.iter().find(|(known, _)| *known == way) {
            return Ok(through.clone());
        }
        let through = match &way.1 {
            Some(named) => self.proxied(secure, named)?,
            None => Through { agent: self.config(secure, None)?.new_agent(), credentials: None },
        };
        made.push((way, through.clone()));
        Ok(through)
    }

    /// A proxy reads plain http itself, unless it is none that speaks it; all else goes through a
    /// tunnel, which ureq opens.
    fn proxied(&self, secure: bool, named: &str) -> Attempt<Through> {
        let proxy = parsed(named)?;
        let credentials = proxy.username().map(|user| {
            let pair = format!("{user}:{}", proxy.password().unwrap_or_default());
            format!("Basic {}", BASE64_STANDARD.encode(pair))
        });
        if secure || proxy.protocol() != ProxyProtocol::Http {
            let secure = secure || proxy.protocol() == ProxyProtocol::Https;
            let agent = self.config(secure, Some(proxy))?.new_agent();
            return Ok(Through { agent, credentials: None });
        }
        let connector = ().chain(TcpConnector::default()).chain(AbsoluteForm);
        let resolver = ToProxy(proxy.uri().clone());
        let agent = Agent::with_parts(self.config(false, None)?, connector, resolver);
        Ok(Through { agent, credentials })
    }

    fn config(&self, secure: bool, proxy: Option<Proxy>) -> Attempt<Config> {
        let tls = TlsConfig::builder();
        let tls = match secure {
            true => {
                let roots = self.roots.get_or_init(roots).clone().map_err(Failure::barred)?;
                tls.root_certs(roots)
            }
            false => tls,
        };
        let options = &self.options;
        Ok(Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("eslm-kd/", env!("CARGO_PKG_VERSION")))
            // A compressed body would have another length and another hash.
            .accept_encoding("identity")
            .proxy(proxy)
            .tls_config(tls.build())
            .timeout_resolve(Some(options.connect_timeout))
            .timeout_connect(Some(options.connect_timeout))
            .timeout_per_read(Some(options.idle_timeout))
            .timeout_per_write(Some(options.idle_timeout))
            .build())
    }

    /// The connection failed, or broke.
    fn unreachable(&self, uri: &Uri, e: &ureq::Error) -> Failure {
        let place = match (uri.scheme_str(), uri.authority()) {
            (Some(scheme), Some(authority)) if !same_origin(uri, &self.endpoint) => {
                format!("{scheme}://{authority}")
            }
            _ => self.options.endpoint.clone(),
        };
        let what = match e {
            ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
                format!("no connection within {:?}", self.options.connect_timeout)
            }
            ureq::Error::Timeout(_) => format!("no byte within {:?}", self.options.idle_timeout),
            ureq::Error::Io(e) if e.to_string().contains("certificate") => {
                return untrusted(&place, e);
            }
            ureq::Error::Rustls(e) => return untrusted(&place, e),
            ureq::Error::Io(e) => e.to_string(),
            other => other.to_string(),
        };
        Failure::passing(format!("cannot reach {place}: {what}"))
    }
}

fn parsed(proxy: &str) -> Result<Proxy> {
    Proxy::new(proxy).map_err(|_| {
        // It may hold a password.
        let shown = proxy.rsplit('@').next().unwrap_or_default();
        Error::usage(format!(
            "the proxy {shown:?} of the environment is not an address such as http://host:8080"
        ))
    })
}

/// A connection that a certificate was wanting for; the next would be wanting it, too.
fn untrusted(place: &str, e: &dyn std::fmt::Display) -> Failure {
    Failure::barred(format!(
        "cannot reach {place}: no trusted connection: {e}. Trusted certificates are the system's (in \
         Debian, the package ca-certificates) or those of SSL_CERT_FILE"
    ))
}

/// Scheme, host and port are the same.
pub(super) fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |u: &Uri| {
        u.port_u16().or(if u.scheme_str() == Some("https") { Some(443) } else { Some(80) })
    };
    let host = |u: &Uri| u.host().map(str::to_lowercase);
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

/// The address that a Location means (RFC 3986, 5.2), as far as servers send any: absolute, from
/// the host on, from the root on, or in the same folder.
fn join(base: &Uri, to: &str) -> Option<Uri> {
    let to = to.split('#').next().unwrap_or_default();
    let origin = format!("{}://{}", base.scheme_str()?, base.authority()?);
    let text = if let Some(rest) = to.strip_prefix("//") {
        format!("{}://{rest}", base.scheme_str()?)
    } else if to.starts_with('/') {
        format!("{origin}{to}")
    } else if to.contains("://") {
        to.to_string()
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{origin}{folder}/{to}")
    };
    let uri: Uri = text.parse().ok()?;
    matches!(uri.scheme_str(), Some("http" | "https")).then_some(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let base = "https://hub.test/a/b/c?x=1".parse().unwrap();
        for (to, expected) in [
            ("/d?e=%2F", "https://hub.test/d?e=%2F"),
            ("d", "https://hub.test/a/b/d"),
            ("//cdn.test/d", "https://cdn.test/d"),
            ("http://cdn.test:8/d#part", "http://cdn.test:8/d"),
        ] {
            assert_eq!(join(&base, to).unwrap().to_string(), expected);
        }
        for nowhere in ["ftp://hub.test/d", "http://", "https://a b/"] {
            assert_eq!(join(&base, nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://hub.test/a", "https://HUB.test:443/b"));
        assert!(!same("https://hub.test/a", "http://hub.test/a"));
        assert!(!same("https://hub.test/a", "https://cdn.hub.test/a"));
        assert!(!same("http://hub.test:8/a", "http://hub.test:9/a"));
    }

    #[test]
    fn the_token_is_for_the_hub_and_for_the_endpoint() {
        let is_hub = |endpoint: &str, uri: &str| {
            let options = HubOptions::new(endpoint, std::path::Path::new("/c"));
            Connections::new(&options, false).unwrap().is_hub(&uri.parse().unwrap())
        };
        for hub in ["https://huggingface.co/a", "https://HF.co:443/a", "http://m.test:8/x"] {
            assert!(is_hub("http://m.test:8", hub), "{hub}");
        }
        for other in [
            "http://huggingface.co/a",
            "https://huggingface.co:8443/a",
            "https://huggingface.co.evil.test/a",
            "https://cdn.huggingface.co/a",
            "http://m.test:9/x",
            "https://m.test/x",
        ] {
            assert!(!is_hub("http://m.test:8", other), "{other}");
        }
        // A mirror may insist on https.
        assert!(is_hub("http://m.test", "https://m.test/x"));
        assert!(!is_hub("https://m.test", "http://m.test/x"));
        assert!(!is_hub("http://m.test", "https://m.test:8443/x"));
    }
}
