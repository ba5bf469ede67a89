//! Where the Hub is, who we are, where the cache lies: the environment that Python's hub library
//! reads, resolved once.

use super::paths::{cache_base, expanded, set};
use crate::error::{Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::http::Uri;

/// The Hub itself.
pub(super) const HUB: &str = "https://huggingface.co";

/// Everything a download depends on. hf-hub never reads the environment on our behalf: later
/// versions stop doing so and move the cache, and version 1.0.0 does not know HF_HUB_OFFLINE.
#[derive(Clone)]
pub struct HubOptions {
    /// Base address, without a slash at its end.
    pub endpoint: String,
    /// The folder of `models--org--name` folders; None where nothing says where one could be.
    pub cache: Option<PathBuf>,
    /// Sent as a bearer token to the endpoint, and to no other host.
    pub token: Option<String>,
    /// Use the cache alone.
    pub offline: bool,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for the next byte.
    pub idle_timeout: Duration,
    /// Attempts after the first failed one.
    pub retries: u32,
    /// Wait before the first retry; doubled each time, with jitter, at most ten seconds.
    pub backoff: Duration,
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl HubOptions {
    /// Reads HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_TOKEN_PATH and HF_HUB_OFFLINE with
    /// the defaults of Python's hub library. `offline` is the command line's flag; either one is
    /// enough. Nothing is judged here: who works with local files alone needs none of it.
    pub fn from_env(offline: bool) -> Self {
        Self::from_vars(offline, |name| std::env::var(name).ok())
    }

    /// The same from any source of variables.
    pub fn from_vars(offline: bool, var: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name: &str| set(name, &var);
        let yes = |text: Option<String>| {
            text.is_some_and(|v| {
                matches!(v.trim().to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
            })
        };
        let path = |name: &str| value(name).map(|text| expanded(&text, &var));
        let home = path("HF_HOME").or_else(|| cache_base(&var).map(|c| c.join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let token_file =
            path("HF_TOKEN_PATH").or_else(|| home.as_ref().map(|home| home.join("token")));
        let token = match value("HF_TOKEN").or_else(|| value("HUGGING_FACE_HUB_TOKEN")) {
            _ if yes(value("HF_HUB_DISABLE_IMPLICIT_TOKEN")) => None,
            Some(token) => Some(token),
            // No token file is the usual case, and an unreadable one is no reason to fail on public
            // models.
            None => token_file.and_then(|f| std::fs::read_to_string(f).ok()),
        };
        let endpoint = value("HF_ENDPOINT").unwrap_or_else(|| HUB.into());
        Self {
            offline: offline || yes(value("HF_HUB_OFFLINE").or(value("TRANSFORMERS_OFFLINE"))),
            token: token.map(|t| t.trim().to_string()).filter(|t| !t.is_empty()),
            ..Self::of(endpoint.trim(), cache.or_else(|| home.map(|home| home.join("hub"))))
        }
    }

    /// The cache folder, for whoever needs one.
    pub fn cache(&self) -> Result<&Path> {
        self.cache.as_deref().ok_or_else(|| {
            Error::usage(
                "no place for the model cache: set HF_HOME (or HOME, or HF_HUB_CACHE) to a folder",
            )
        })
    }

    /// Errs where endpoint or token are none, as every question to the Hub would.
    pub fn check(&self) -> Result<()> {
        self.address().map(drop)
    }

    /// The endpoint as an address, and the token with it, for whoever asks the Hub.
    pub(super) fn address(&self) -> Result<Uri> {
        if self.token.as_ref().is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::usage(
                "HF_TOKEN (or the token file) holds characters that no token has; log in again",
            ));
        }
        let address = self.endpoint.parse::<Uri>().ok();
        let web = |u: &Uri| matches!(u.scheme_str(), Some("http" | "https")) && u.host().is_some();
        address.filter(web).ok_or_else(|| self.bad_endpoint())
    }

    /// The error of an endpoint that is none.
    pub(super) fn bad_endpoint(&self) -> Error {
        Error::usage(format!(
            "HF_ENDPOINT must be an http or https address such as {HUB}, found {:?}",
            self.endpoint
        ))
    }

    /// An endpoint and a cache folder, no token, and the default patience.
    pub fn new(endpoint: &str, cache: &Path) -> Self {
        Self::of(endpoint, Some(cache.to_path_buf()))
    }

    fn of(endpoint: &str, cache: Option<PathBuf>) -> Self {
        Self {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            cache,
            token: None,
            offline: false,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            retries: 4,
            backoff: Duration::from_millis(500),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(vars: &[(&str, &str)]) -> HubOptions {
        HubOptions::from_vars(false, |name| {
            vars.iter().find(|v| v.0 == name).map(|v| v.1.to_string())
        })
    }

    #[test]
    fn the_cache_follows_pythons_order() {
        let cache = |vars: &[(&str, &str)]| of(vars).cache.unwrap();
        assert_eq!(cache(&[("HOME", "/u")]), Path::new("/u/.cache/huggingface/hub"));
        assert_eq!(
            cache(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/x")]),
            Path::new("/x/huggingface/hub")
        );
        assert_eq!(
            cache(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/h")]),
            Path::new("/u/h/hub")
        );
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        let p = ("P", "/p");
        assert_eq!(cache(&[p, ("XDG_CACHE_HOME", "$P/x")]), Path::new("/p/x/huggingface/hub"));
        assert_eq!(cache(&[p, ("HF_HOME", "${P}/h")]), Path::new("/p/h/hub"));
        assert_eq!(cache(&[p, ("HF_HUB_CACHE", "$P/c")]), Path::new("/p/c"));
        assert_eq!(cache(&[p, ("HUGGINGFACE_HUB_CACHE", "$P/c")]), Path::new("/p/c"));
        let empty =
            [("HOME", "/u"), ("XDG_CACHE_HOME", ""), ("HF_HOME", " "), ("HF_HUB_CACHE", "")];
        assert_eq!(cache(&empty), Path::new("/u/.cache/huggingface/hub"));
        let nowhere = HubOptions { cache: None, ..of(&[]) };
        assert!(nowhere.cache().unwrap_err().to_string().contains("HF_HOME"));
    }

    #[test]
    fn offline_endpoint_and_token() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("elsewhere");
        std::fs::write(home.path().join("token"), "hf_default\r\n").unwrap();
        std::fs::write(&file, "hf_file\n").unwrap();
        let (h, f) = (home.path().to_str().unwrap(), file.to_str().unwrap());
        assert_eq!(of(&[("HF_HOME", h)]).token.as_deref(), Some("hf_default"));
        let token = |vars: &[(&str, &str)]| of(&[&[("HF_HOME", h)], vars].concat()).token;
        assert_eq!(token(&[("HF_TOKEN_PATH", f)]).as_deref(), Some("hf_file"));
        assert_eq!(
            token(&[("HF_TOKEN_PATH", "$D/elsewhere"), ("D", h)]).as_deref(),
            Some("hf_file")
        );
        let set = of(&[("HF_HOME", h), ("HF_TOKEN", "hf_var"), ("HF_TOKEN_PATH", f)]);
        assert_eq!(set.token.as_deref(), Some("hf_var"));
        assert!(!format!("{set:?}").contains("hf_var"));
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);

        let offline = |vars| of(vars).offline;
        assert!(!set.offline && !offline(&[("HF_HUB_OFFLINE", "0")]));
        assert!(offline(&[("HF_HUB_OFFLINE", "true")]));
        assert!(offline(&[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "yes")]));
        assert!(!offline(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]));
        assert!(HubOptions::from_vars(true, |_| None).offline);

        assert_eq!(set.endpoint, "https://huggingface.co");
        assert_eq!(of(&[("HF_ENDPOINT", "http://m:8/hub/")]).endpoint, "http://m:8/hub");
    }

    #[test]
    fn what_is_wrong_is_said_to_whoever_asks_the_hub() {
        assert_eq!(of(&[]).address().unwrap().host(), Some("huggingface.co"));
        for bad in ["ftp://m", "mirror", "http://"] {
            let message = of(&[("HF_ENDPOINT", bad)]).address().unwrap_err().to_string();
            assert!(
                message.contains("HF_ENDPOINT") && message.contains(bad.trim_end_matches('/')),
                "{message}"
            );
        }
        let message = of(&[("HF_TOKEN", "a\nb")]).address().unwrap_err().to_string();
        assert!(message.contains("HF_TOKEN"), "{message}");
    }
}
