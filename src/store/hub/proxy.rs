//! Which proxy an address is asked through, and requests in the form that a proxy reads.
//!
//! ureq 3.5 takes one proxy for every scheme, matches NO_PROXY by whole names only, and opens a
//! CONNECT tunnel for plain http too, which proxies refuse for ports other than 443. Everybody
//! else's rule (curl, Python, Go) is followed here instead: HTTP_PROXY for http and HTTPS_PROXY for
//! https, ALL_PROXY for both, lower case first; an entry of NO_PROXY covers its subdomains; plain
//! http is sent to the proxy with the whole address in its first line (RFC 9112, 3.2.2).

use super::paths::set;
use std::fmt;
use std::net::IpAddr;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// The proxies that the environment names.
#[derive(Debug, Clone, Default)]
pub(super) struct Proxies {
    http: Option<String>,
    https: Option<String>,
    exempt: Vec<String>,
}

impl Proxies {
    /// Reads HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY in either case.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| {
            let found = set(&name.to_lowercase(), &var).or_else(|| set(name, &var));
            found.map(|value| value.trim().to_string())
        };
        // Under CGI, HTTP_PROXY is a header of the request (httpoxy).
        let http = either("HTTP_PROXY").filter(|_| set("REQUEST_METHOD", &var).is_none());
        let named = |proxy: Option<String>| {
            let proxy = proxy.or_else(|| either("ALL_PROXY"))?;
            Some(if proxy.contains("://") { proxy } else { format!("http://{proxy}") })
        };
        let exempt = either("NO_PROXY").unwrap_or_default();
        let exempt = exempt
            .split([',', ' '])
            .map(str::trim)
            .filter(|e| !e.is_empty())
            .map(str::to_lowercase)
            .collect();
        Self { http: named(http), https: named(either("HTTPS_PROXY")), exempt }
    }

    /// The proxy for plain http.
    pub fn http(&self) -> Option<&str> {
        self.http.as_deref()
    }

    /// The proxy for https.
    pub fn https(&self) -> Option<&str> {
        self.https.as_deref()
    }

    /// Whether an address is asked directly. A server on this machine is behind no proxy.
    pub fn exempts(&self, uri: &Uri) -> bool {
        let host = bare(uri.host().unwrap_or_default()).to_lowercase();
        is_local(&host) || self.exempt.iter().any(|entry| covers(entry, &host, uri.port_u16()))
    }
}

/// An IPv6 host without its brackets.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether an entry of NO_PROXY means this host: `*`, a name and all below it, an address, a
/// network, each with a port or without.
fn covers(entry: &str, host: &str, port: Option<u16>) -> bool {
    if entry == "*" {
        return true;
    }
    if let Some((network, bits)) = entry.split_once('/') {
        return within(bare(network), bits, host);
    }
    // One colon is a port; more are an IPv6 address.
    let (name, wanted) = match entry.rsplit_once(':') {
        Some((name, digits)) if !bare(name).contains(':') || name.ends_with(']') => {
            (name, digits.parse().ok())
        }
        _ => (entry, None),
    };
    if wanted.is_some() && wanted != port {
        return false;
    }
    let name = bare(name).trim_start_matches('*').trim_start_matches('.');
    !name.is_empty()
        && host.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn within(network: &str, bits: &str, host: &str) -> bool {
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    };
    let (Ok(network), Ok(bits), Ok(host)) = (network.parse(), bits.parse::<u32>(), host.parse())
    else {
        return false;
    };
    let ((network, most), (host, width)) = (number(network), number(host));
    // A shift by all 128 bits would be none.
    most == width && bits <= most && (network ^ host).checked_shr(128 - bits).unwrap_or(0) == 0
}

/// Sends every connection to the proxy, whatever host a request names.
#[derive(Debug)]
pub(super) struct ToProxy(pub Uri);

impl Resolver for ToProxy {
    fn resolve(
        &self,
        _: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        DefaultResolver::default().resolve(&self.0, config, timeout)
    }
}

/// Puts the whole address into the first line of every request.
#[derive(Debug)]
pub(super) struct AbsoluteForm;

impl<In: Transport> Connector<In> for AbsoluteForm {
    type Out = Absolute<In>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let authority = details
            .uri
            .authority()
            .map(|a| a.as_str().rsplit('@').next().unwrap_or_default().to_string());
        Ok(chained.zip(authority).map(|(inner, authority)| Absolute { inner, authority }))
    }
}

/// A connection to a proxy that carries the requests for one host.
pub(super) struct Absolute<In> {
    inner: In,
    authority: String,
}

impl<In> fmt::Debug for Absolute<In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Absolute").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl<In: Transport> Transport for Absolute<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let output = self.inner.buffers().output();
        // The requests have no bodies, so what begins like one is one.
        let path = ["GET ", "HEAD "]
            .into_iter()
            .find(|m| output[..amount].starts_with(format!("{m}/").as_bytes()));
        let Some(method) = path else { return self.inner.transmit_output(amount, timeout) };
        let insert = format!("http://{}", self.authority);
        if amount + insert.len() > output.len() {
            return Err(ureq::Error::LargeResponseHeader(amount + insert.len(), output.len()));
        }
        output.copy_within(method.len()..amount, method.len() + insert.len());
        output[method.len()..][..insert.len()].copy_from_slice(insert.as_bytes());
        self.inner.transmit_output(amount + insert.len(), timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(vars: &[(&str, &str)], address: &str) -> Option<String> {
        let proxies =
            Proxies::from_vars(|name| vars.iter().find(|v| v.0 == name).map(|v| v.1.to_string()));
        let uri = address.parse().unwrap();
        let proxy = if address.starts_with("https") { proxies.https() } else { proxies.http() };
        proxy.filter(|_| !proxies.exempts(&uri)).map(str::to_string)
    }

    #[test]
    fn each_scheme_has_its_proxy_and_lower_case_comes_first() {
        let vars = [
            ("HTTP_PROXY", "upper:1"),
            ("http_proxy", "lower:1"),
            ("HTTPS_PROXY", "http://secure:2"),
            ("https_proxy", " "),
        ];
        assert_eq!(through(&vars, "http://hub.test/x").unwrap(), "http://lower:1");
        assert_eq!(through(&vars, "https://hub.test/x").unwrap(), "http://secure:2");
        assert_eq!(through(&[("HTTP_PROXY", "p:1")], "https://hub.test"), None);
        assert_eq!(through(&[("ALL_PROXY", "p:1")], "https://hub.test").unwrap(), "http://p:1");
        assert_eq!(
            through(&[("HTTP_PROXY", "p:1"), ("REQUEST_METHOD", "GET")], "http://hub.test"),
            None
        );
    }

    #[test]
    fn no_proxy_covers_names_below_networks_and_ports() {
        for local in [
            "http://localhost:8080/x",
            "http://127.0.0.1:1",
            "http://127.9.9.9",
            "http://[::1]:9/x",
        ] {
            assert_eq!(through(&[("all_proxy", "p:1")], local), None, "{local}");
        }
        let exempt = [
            ("hub.test", "http://hub.test:8/x", true),
            ("hub.test", "http://cdn.HUB.test", true),
            (".hub.test", "http://cdn.hub.test", true),
            ("*.hub.test", "http://cdn.hub.test", true),
            ("hub.test", "http://myhub.test", false),
            ("other, hub.test", "http://hub.test", true),
            ("hub.test:8", "http://hub.test:8", true),
            ("hub.test:8", "http://hub.test:9", false),
            ("*", "http://hub.test", true),
            ("10.0.0.0/8", "http://10.9.1.2", true),
            ("10.0.0.0/8", "http://11.9.1.2", false),
            ("10.0.0.0/99", "http://10.9.1.2", false),
            ("0.0.0.0/0", "http://10.9.1.2", true),
            ("0.0.0.0/0", "http://[fd00::1]", false),
            ("fd00::/8", "http://[fd00::1]:3", true),
            ("fd00::1", "http://[fd00::1]:3", true),
            ("[fd00::1]:4", "http://[fd00::1]:3", false),
        ];
        for (entry, address, direct) in exempt {
            let found = through(&[("all_proxy", "p:1"), ("no_proxy", entry)], address);
            assert_eq!(found.is_none(), direct, "{entry}: {address}");
        }
    }
}
