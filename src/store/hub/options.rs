//! Where the Hub is, who we are, where the cache lies: the environment that Python's hub library
//! reads, resolved once.

use crate::error::{Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything a download depends on. hf-hub never reads the environment on our behalf: later
/// versions stop doing so and move the cache, and version 1.0.0 does not know HF_HUB_OFFLINE.
#[derive(Clone)]
pub struct HubOptions {
    /// Base address, without a slash at its end.
    pub endpoint: String,
    /// The folder of `models--org--name` folders.
    pub cache: PathBuf,
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
    /// enough.
    pub fn from_env(offline: bool) -> Result<Self> {
        Self::from_vars(offline, |name| std::env::var(name).ok())
    }

    /// The same from any source of variables.
    pub fn from_vars(offline: bool, var: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let var = |name: &str| var(name).filter(|v| !v.trim().is_empty());
        let yes = |name: &str| {
            var(name).is_some_and(|v| {
                matches!(v.trim().to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
            })
        };
        let user = var("HOME").or_else(|| var("USERPROFILE"));
        let path = |text: String| match (text.strip_prefix("~/"), &user) {
            (Some(rest), Some(user)) => Path::new(user).join(rest),
            _ => PathBuf::from(text),
        };
        let home = match (var("HF_HOME"), var("XDG_CACHE_HOME"), &user) {
            (Some(home), ..) => Some(path(home)),
            (None, Some(xdg), _) => Some(path(xdg).join("huggingface")),
            (None, None, Some(user)) => Some(Path::new(user).join(".cache/huggingface")),
            (None, None, None) => None,
        };
        let cache = match var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE")) {
            Some(cache) => path(cache),
            None => home.as_ref().map(|h| h.join("hub")).ok_or_else(|| {
                Error::usage("no place for the model cache: set HF_HOME (or HOME, or HF_HUB_CACHE) to a folder")
            })?,
        };
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim().trim_end_matches('/').to_string();
        let parsed = endpoint.parse::<ureq::http::Uri>();
        if !parsed
            .is_ok_and(|u| matches!(u.scheme_str(), Some("http" | "https")) && u.host().is_some())
        {
            return Err(bad_endpoint(&endpoint));
        }
        let token_file = var("HF_TOKEN_PATH").map(path).or_else(|| home.map(|h| h.join("token")));
        let token = match var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")) {
            _ if yes("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            Some(token) => Some(token),
            // No token file is the usual case, and an unreadable one is no reason to fail on public
            // models.
            None => token_file.and_then(|f| std::fs::read_to_string(f).ok()),
        };
        let token = token.map(|t| t.trim().to_string()).filter(|t| !t.is_empty());
        if token.as_ref().is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::usage(
                "HF_TOKEN (or the token file) holds characters that no token has; log in again",
            ));
        }
        Ok(Self {
            offline: offline || yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE"),
            token,
            ..Self::new(&endpoint, &cache)
        })
    }

    /// The error of an endpoint that is none.
    pub(super) fn bad_endpoint(&self) -> Error {
        bad_endpoint(&self.endpoint)
    }

    /// An endpoint and a cache folder, no token, and the default patience.
    pub fn new(endpoint: &str, cache: &Path) -> Self {
        Self {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            cache: cache.to_path_buf(),
            token: None,
            offline: false,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            retries: 4,
            backoff: Duration::from_millis(500),
        }
    }
}

fn bad_endpoint(found: &str) -> Error {
    Error::usage(format!(
        "HF_ENDPOINT must be an http or https address such as https://huggingface.co, found {found:?}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(vars: &[(&str, &str)]) -> Result<HubOptions> {
        HubOptions::from_vars(false, |name| {
            vars.iter().find(|v| v.0 == name).map(|v| v.1.to_string())
        })
    }

    #[test]
    fn the_cache_follows_pythons_order() {
        let cache = |vars: &[(&str, &str)]| of(vars).unwrap().cache;
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
        assert!(of(&[]).unwrap_err().to_string().contains("HF_HOME"));
    }

    #[test]
    fn offline_endpoint_and_token() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("elsewhere");
        std::fs::write(home.path().join("token"), "hf_default\n").unwrap();
        std::fs::write(&file, "hf_file\n").unwrap();
        let (h, f) = (home.path().to_str().unwrap(), file.to_str().unwrap());
        assert_eq!(of(&[("HF_HOME", h)]).unwrap().token.as_deref(), Some("hf_default"));
        assert_eq!(
            of(&[("HF_HOME", h), ("HF_TOKEN_PATH", f)]).unwrap().token.as_deref(),
            Some("hf_file")
        );
        let set = of(&[("HF_HOME", h), ("HF_TOKEN", "hf_var"), ("HF_TOKEN_PATH", f)]).unwrap();
        assert_eq!(set.token.as_deref(), Some("hf_var"));
        assert!(!format!("{set:?}").contains("hf_var"));
        assert_eq!(
            of(&[("HF_HOME", h), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).unwrap().token,
            None
        );
        assert!(
            of(&[("HF_HOME", h), ("HF_TOKEN", "a\nb")])
                .unwrap_err()
                .to_string()
                .contains("HF_TOKEN")
        );

        assert!(!set.offline);
        assert!(!of(&[("HF_HOME", h), ("HF_HUB_OFFLINE", "0")]).unwrap().offline);
        assert!(of(&[("HF_HOME", h), ("HF_HUB_OFFLINE", "true")]).unwrap().offline);
        assert!(
            HubOptions::from_vars(true, |n| (n == "HF_HOME").then(|| h.to_string()))
                .unwrap()
                .offline
        );

        assert_eq!(set.endpoint, "https://huggingface.co");
        assert_eq!(
            of(&[("HF_HOME", h), ("HF_ENDPOINT", "http://m:8/hub/")]).unwrap().endpoint,
            "http://m:8/hub"
        );
        for bad in ["ftp://m", "mirror", "http://"] {
            assert!(
                of(&[("HF_HOME", h), ("HF_ENDPOINT", bad)])
                    .unwrap_err()
                    .to_string()
                    .contains("HF_ENDPOINT"),
                "{bad}"
            );
        }
    }
}
