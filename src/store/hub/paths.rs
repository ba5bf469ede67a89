//! Paths that the environment names, read as Python's hub library reads them: `os.path.expanduser`,
//! then `os.path.expandvars`. Env files and `/etc/environment` leave both to the program.

use std::path::{Path, PathBuf};

/// The value of a variable; one that holds nothing is not set.
pub(crate) fn set(name: &str, var: impl Fn(&str) -> Option<String>) -> Option<String> {
    var(name).filter(|value| !value.trim().is_empty())
}

/// The user's folder: HOME, or else what the system knows of the user.
pub(crate) fn home(var: &impl Fn(&str) -> Option<String>) -> Option<String> {
    set("HOME", var).or_else(|| set("USERPROFILE", var)).or_else(|| home_of(""))
}

/// `~`, `~user`, `$NAME` and `${NAME}` replaced; what is not known stays as it is written.
pub(crate) fn expanded(text: &str, var: &impl Fn(&str) -> Option<String>) -> PathBuf {
    PathBuf::from(with_variables(&with_home(text, var), var))
}

/// A folder in the user's own, or below a variable that names another.
pub(crate) fn cache_base(var: &impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let named = set("XDG_CACHE_HOME", var).map(|text| expanded(&text, var));
    named.or_else(|| home(var).map(|home| Path::new(&home).join(".cache")))
}

fn with_home(text: &str, var: &impl Fn(&str) -> Option<String>) -> String {
    let Some(rest) = text.strip_prefix('~') else { return text.to_string() };
    let (user, rest) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let folder = if user.is_empty() { home(var) } else { home_of(user) };
    match folder {
        Some(folder) => match format!("{}{rest}", folder.trim_end_matches('/')) {
            path if path.is_empty() => "/".to_string(),
            path => path,
        },
        None => text.to_string(),
    }
}

fn with_variables(text: &str, var: &impl Fn(&str) -> Option<String>) -> String {
    let (mut done, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('$') {
        done.push_str(&rest[..at]);
        rest = &rest[at..];
        let (name, length) = match rest[1..].strip_prefix('{').and_then(|r| r.split_once('}')) {
            Some((name, _)) => (name, name.len() + 3),
            None => {
                let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let end = rest[1..].find(|c| !word(c)).unwrap_or(rest.len() - 1);
                (&rest[1..=end], end + 1)
            }
        };
        // What a value holds is not read again.
        done.push_str(&var(name).filter(|_| !name.is_empty()).unwrap_or(rest[..length].into()));
        rest = &rest[length..];
    }
    done + rest
}

/// The folder of a user by name; of whoever runs the program where there is none.
#[cfg(unix)]
fn home_of(user: &str) -> Option<String> {
    use nix::unistd::{User, getuid};
    let found = if user.is_empty() { User::from_uid(getuid()) } else { User::from_name(user) };
    found.ok().flatten()?.dir.into_os_string().into_string().ok().filter(|dir| !dir.is_empty())
}

#[cfg(not(unix))]
fn home_of(_: &str) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each right value is what Python's `expandvars(expanduser(..))` gives.
    #[test]
    fn paths_are_expanded_as_python_does() {
        let vars = [("HOME", "/u/"), ("A", "/a"), ("A_1", "$A"), ("B-C", "dash"), ("E", "")];
        let var = |name: &str| vars.iter().find(|v| v.0 == name).map(|v| v.1.to_string());
        for (text, expected) in [
            ("/plain", "/plain"),
            ("$A/x", "/a/x"),
            ("${A}x", "/ax"),
            ("$Ax/$A", "$Ax//a"),
            ("$A_1/x", "$A/x"),
            ("${B-C}/$B-C", "dash/$B-C"),
            ("$E/x${E}", "/x"),
            ("$NONE/${NONE}/x", "$NONE/${NONE}/x"),
            ("$", "$"),
            ("a$$A$/b", "a$/a$/b"),
            ("${A", "${A"),
            ("${}/$é", "${}/$é"),
            ("~", "/u"),
            ("~/h/$A", "/u/h//a"),
            ("x~/h", "x~/h"),
            ("~no-such-user-here/x", "~no-such-user-here/x"),
        ] {
            assert_eq!(expanded(text, &var).to_str().unwrap(), expected, "{text}");
        }
        assert_eq!(expanded("~", &|n| (n == "HOME").then(|| "/".into())), Path::new("/"));
    }

    #[test]
    #[cfg(unix)]
    fn the_system_knows_where_users_are_at_home() {
        let line = std::fs::read_to_string("/etc/passwd").unwrap();
        let Some(root) = line.lines().find(|l| l.starts_with("root:")) else {
            return eprintln!("skipped: this system has no user root");
        };
        let dir = root.split(':').nth(5).unwrap();
        assert_eq!(expanded("~root/x", &|_| None), Path::new(dir).join("x"));
        if nix::unistd::getuid().is_root() {
            assert_eq!(home(&|_| None).unwrap(), dir);
            assert_eq!(home(&|n| (n == "HOME").then(|| " ".into())).unwrap(), dir);
        }
    }
}
