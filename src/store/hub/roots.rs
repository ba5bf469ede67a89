//! Which certificates are trusted: the system's, which know a company's own, or those of
//! SSL_CERT_FILE and SSL_CERT_DIR; where the system has none at all (slim containers), Mozilla's,
//! which the program carries as Python's client does.

use ureq::tls::RootCerts;

/// Reads them. An error says what is wrong with those that were named.
#[cfg(all(unix, not(target_vendor = "apple")))]
pub(super) fn roots() -> Result<RootCerts, String> {
    use std::path::PathBuf;
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let file = named("SSL_CERT_FILE").map(PathBuf::from);
    let folders: Vec<PathBuf> = named("SSL_CERT_DIR")
        .map(|text| std::env::split_paths(&text).filter(|f| !f.as_os_str().is_empty()).collect())
        .unwrap_or_default();
    if file.is_none() && folders.is_empty() {
        // Not load_native_certs: it takes a variable that is empty for a place without any.
        let system = openssl_probe::probe();
        return Ok(read(system.cert_file, system.cert_dir).unwrap_or(RootCerts::WebPki));
    }
    let places: Vec<_> = file.iter().chain(&folders).map(|p| p.display().to_string()).collect();
    read(file, folders).map_err(|why| {
        format!(
            "no trusted certificates for https in {}{why}. SSL_CERT_FILE or SSL_CERT_DIR names them; \
             unset, the system's are used (in Debian, the package ca-certificates)",
            places.join(" and ")
        )
    })
}

/// The certificates of a file and of folders, or why there are none.
#[cfg(all(unix, not(target_vendor = "apple")))]
fn read(
    file: Option<std::path::PathBuf>,
    folders: Vec<std::path::PathBuf>,
) -> Result<RootCerts, String> {
    use rustls_native_certs::load_certs_from_paths;
    let mut found = load_certs_from_paths(file.as_deref(), None);
    for folder in folders {
        let more = load_certs_from_paths(None, Some(&folder));
        found.certs.extend(more.certs);
        found.errors.extend(more.errors);
    }
    if found.certs.is_empty() {
        return Err(found.errors.first().map_or(String::new(), |e| format!(" ({e})")));
    }
    let certs = found.certs.iter().map(|c| ureq::tls::Certificate::from_der(c).to_owned());
    Ok(certs.collect::<Vec<_>>().into())
}

/// Reads them: the system's own verifier knows where they are.
#[cfg(not(all(unix, not(target_vendor = "apple"))))]
pub(super) fn roots() -> Result<RootCerts, String> {
    Ok(RootCerts::PlatformVerifier)
}
