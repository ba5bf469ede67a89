//! One HTTP exchange, on a thread of its own: ureq blocks, and a wait must hear a stop signal
//! within a tick. A thread that nobody waits for any more ends with its own time-outs.

use super::options::HubOptions;
use super::proxy::{AbsoluteForm, Proxies, ToProxy};
use super::retry::{Attempt, Failure, TICK};
use crate::error::{Error, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use ureq::config::Config;
use ureq::http::header::{AUTHORIZATION, LOCATION, PROXY_AUTHORIZATION, RANGE};
use ureq::http::{HeaderMap, Method, Request, StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::transport::{Connector, TcpConnector};
use ureq::{Agent, Proxy, ProxyProtocol, Timeout};

/// Longest time for the headers of an answer.
const ANSWER: Duration = Duration::from_secs(60);
/// Bytes read at once, and how many such reads may lie ready before the reader waits.
const BLOCK: usize = 256 << 10;
const READY: usize = 4;
/// Redirects followed.
const HOPS: usize = 10;

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

/// The connections that a run of requests shares.
pub(super) struct Connections {
    options: HubOptions,
    endpoint: Uri,
    proxies: Proxies,
    direct: Agent,
    http: Option<Through>,
    https: Option<Through>,
}

/// How to ask through a proxy.
struct Through {
    agent: Agent,
    /// What a proxy that reads plain requests wants to be shown; for a tunnel, ureq sees to it.
    credentials: Option<String>,
}

impl Connections {
    pub fn new(options: &HubOptions) -> Result<Self> {
        let endpoint = options.endpoint.parse().map_err(|_| options.bad_endpoint())?;
        let proxies = Proxies::from_vars(|name| std::env::var(name).ok());
        let roots = roots();
        Ok(Self {
            direct: config(options, &roots, None).new_agent(),
            http: proxies.http().map(|proxy| Through::plain(options, &roots, proxy)).transpose()?,
            https: proxies
                .https()
                .map(|proxy| Through::tunnel(options, &roots, proxy))
                .transpose()?,
            options: options.clone(),
            endpoint,
            proxies,
        })
    }

    /// Asks once. Redirects are answers.
    pub fn once(&self, ask: &Ask) -> Attempt<Answer> {
        let (agent, credentials) = self.agent(&ask.uri);
        let mut request = Request::builder().method(&ask.method).uri(&ask.uri);
        if ask.start > 0 {
            request = request.header(RANGE, format!("bytes={}-", ask.start));
        }
        if let Some(token) =
            self.options.token.as_ref().filter(|_| same_origin(&ask.uri, &self.endpoint))
        {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(credentials) = credentials {
            request = request.header(PROXY_AUTHORIZATION, credentials);
        }
        let request =
            request.body(()).map_err(|e| Error::hub(format!("cannot ask for {}: {e}", ask.uri)))?;
        let agent = agent.clone();
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
            .wait(&told, ANSWER)??
            .ok_or_else(|| Error::internal("the thread of a download ended without an answer"))?
            .map_err(|e| self.unreachable(&ask.uri, &e))?;
        Ok(Answer { status, headers, uri: ask.uri.clone(), blocks })
    }

    /// Asks, and goes where the answer sends us. The token stays with the endpoint.
    pub fn follow(&self, ask: &Ask) -> Attempt<Answer> {
        let mut ask = ask.clone();
        for _ in 0..HOPS {
            let answer = self.once(&ask)?;
            match answer.location() {
                Some(to) => ask.uri = to,
                None => return Ok(answer),
            }
        }
        Err(Failure::passing(format!("{}: more than {HOPS} redirects", self.options.endpoint)))
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

    fn agent(&self, uri: &Uri) -> (&Agent, Option<&str>) {
        if self.proxies.exempts(uri) {
            return (&self.direct, None);
        }
        let through = if uri.scheme_str() == Some("https") { &self.https } else { &self.http };
        through.as_ref().map_or((&self.direct, None), |t| (&t.agent, t.credentials.as_deref()))
    }

    /// The connection failed, or broke.
    fn unreachable(&self, uri: &Uri, e: &ureq::Error) -> Failure {
        let what = match e {
            ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
                format!("no connection within {:?}", self.options.connect_timeout)
            }
            ureq::Error::Timeout(_) => format!("no byte within {:?}", self.options.idle_timeout),
            ureq::Error::Io(e) if e.to_string().contains("certificate") => untrusted(e),
            ureq::Error::Rustls(e) => untrusted(e),
            ureq::Error::Io(e) => e.to_string(),
            other => other.to_string(),
        };
        let place = match (uri.scheme_str(), uri.authority()) {
            (Some(scheme), Some(authority)) if !same_origin(uri, &self.endpoint) => {
                format!("{scheme}://{authority}")
            }
            _ => self.options.endpoint.clone(),
        };
        Failure::passing(format!("cannot reach {place}: {what}"))
    }
}

impl Through {
    /// For https: a tunnel, which ureq opens.
    fn tunnel(options: &HubOptions, roots: &RootCerts, proxy: &str) -> Result<Self> {
        let proxy = parsed(proxy)?;
        Ok(Self { agent: config(options, roots, Some(proxy)).new_agent(), credentials: None })
    }

    /// For http: the proxy reads the request itself, unless it is none that speaks plain HTTP.
    fn plain(options: &HubOptions, roots: &RootCerts, named: &str) -> Result<Self> {
        let proxy = parsed(named)?;
        if proxy.protocol() != ProxyProtocol::Http {
            return Self::tunnel(options, roots, named);
        }
        let credentials = proxy.username().map(|user| {
            let pair = format!("{user}:{}", proxy.password().unwrap_or_default());
            format!("Basic {}", BASE64_STANDARD.encode(pair))
        });
        let connector = ().chain(TcpConnector::default()).chain(AbsoluteForm);
        let resolver = ToProxy(proxy.uri().clone());
        Ok(Self {
            agent: Agent::with_parts(config(options, roots, None), connector, resolver),
            credentials,
        })
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

fn config(options: &HubOptions, roots: &RootCerts, proxy: Option<Proxy>) -> Config {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("eslm-kd/", env!("CARGO_PKG_VERSION")))
        // A compressed body would have another length and another hash.
        .accept_encoding("identity")
        .proxy(proxy)
        .tls_config(TlsConfig::builder().root_certs(roots.clone()).build())
        .timeout_resolve(Some(options.connect_timeout))
        .timeout_connect(Some(options.connect_timeout))
        .timeout_per_read(Some(options.idle_timeout))
        .timeout_per_write(Some(options.idle_timeout))
        .build()
}

/// The system's certificates, which know a company's own, or those of SSL_CERT_FILE and
/// SSL_CERT_DIR; where there are none at all (slim containers), Mozilla's, which the program
/// carries as Python's client does.
fn roots() -> RootCerts {
    #[cfg(all(unix, not(target_vendor = "apple")))]
    if ["SSL_CERT_FILE", "SSL_CERT_DIR"].iter().all(|name| std::env::var_os(name).is_none())
        && rustls_native_certs::load_native_certs().certs.is_empty()
    {
        return RootCerts::WebPki;
    }
    RootCerts::PlatformVerifier
}

/// A connection that a certificate was wanting for.
fn untrusted(e: &dyn std::fmt::Display) -> String {
    format!(
        "no trusted connection: {e}. Trusted certificates are the system's (in Debian, the package \
         ca-certificates) or those of SSL_CERT_FILE"
    )
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
}
