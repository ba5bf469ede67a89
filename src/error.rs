//! One error type for the whole crate: what was expected, what was found, where, and what to do
//! next.

use std::fmt;
use std::path::{Component, Path, PathBuf};

/// Longest message: much of it may be a file's own words, and a file may hold megabytes of them.
const MOST_BYTES: usize = 4000;
/// How much of a longer message stays at its end, where it says what to do.
const END_BYTES: usize = 1000;

/// Shorthand used by every fallible function of the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, as far as a caller or a script has to tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The command line or a config file asks for something that does not exist or does not fit
    /// together.
    Usage,
    /// An input file, token file, checkpoint or model folder is missing, damaged or of the wrong
    /// kind.
    Data,
    /// The Hub could not be reached, refused, or sent something that failed verification.
    Hub,
    /// A loss, gradient or score stopped being finite; nothing was stepped with it.
    NonFinite,
    /// A signal asked the process to stop (exit status 128 + signal: 130 for SIGINT, 143 for SIGTERM);
    /// state was saved first.
    Interrupted(i32),
    /// The operating system refused a read or a write.
    Io,
    /// A bug in eslm-kd or in a library below it.
    Internal,
}

/// An error with one message for people and a kind for programs.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    go_on: Option<String>,
}

impl Error {
    /// An error of the given kind. The message says what was expected, what was found, where, and
    /// what to do. It is made one line of a few kilobytes at most: control characters are shown
    /// escaped, and the middle of a longer one is left out.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: presentable(message.into()), go_on: None }
    }

    /// Wrong command line or config.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// Wrong or damaged input.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, message)
    }

    /// Anything between us and the Hub.
    pub fn hub(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Hub, message)
    }

    /// A broken invariant of our own.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// An operating-system error while doing `action` ("read", "create", ...) on `path`.
    pub fn io(action: &str, path: &Path, source: std::io::Error) -> Self {
        let text = source.to_string();
        // The number behind the words tells a person nothing.
        let why = text.split(" (os error ").next().unwrap_or(&text);
        // What is to be read and is not there is an input that is missing.
        let missing = source.kind() == std::io::ErrorKind::NotFound && action == "read";
        let kind = if missing { ErrorKind::Data } else { ErrorKind::Io };
        Self::new(kind, format!("cannot {action} {}: {why}", asked_for(path).display()))
    }

    /// The kind, for programs.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The command that goes on from where this error ended a run, whole, for a shell.
    pub fn go_on(&self) -> Option<&str> {
        self.go_on.as_deref()
    }

    /// Names that command, in place of one that was named further inside.
    #[must_use]
    pub fn going_on_with(mut self, command: impl Into<String>) -> Self {
        self.go_on = Some(presentable(command.into()));
        self
    }

    /// Puts where it happened in front of the message; where a signal was noticed tells nobody
    /// anything.
    #[must_use]
    pub fn context(mut self, place: impl fmt::Display) -> Self {
        if !matches!(self.kind, ErrorKind::Interrupted(_)) {
            self.message = presentable(format!("{place}: {}", self.message));
        }
        self
    }

    /// Adds what follows from it to the message.
    #[must_use]
    pub fn followed_by(mut self, more: &str) -> Self {
        self.message = presentable(format!("{}{more}", self.message));
        self
    }

    /// The process exit status that belongs to the kind: 2 usage, 3 data, 4 Hub, 5 non-finite, 6
    /// I/O, 128 + signal when interrupted, 1 otherwise.
    pub fn exit_code(&self) -> i32 {
        match self.kind {
            ErrorKind::Usage => 2,
            ErrorKind::Data => 3,
            ErrorKind::Hub => 4,
            ErrorKind::NonFinite => 5,
            ErrorKind::Io => 6,
            ErrorKind::Interrupted(signal) => 128 + signal,
            ErrorKind::Internal => 1,
        }
    }
}

/// The path with the names of our temporary files and folders (`.NAME.PID-N.tmp`, see `files`) as
/// what they become: nobody asked for those.
fn asked_for(path: &Path) -> PathBuf {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let final_name = |name: &str| {
        let (name, numbers) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
        let (process, n) = numbers.split_once('-')?;
        (number(process) && number(n)).then(|| name.to_string())
    };
    let component = |c: Component<'_>| match c.as_os_str().to_str().and_then(final_name) {
        Some(name) => name.into(),
        None => c.as_os_str().to_os_string(),
    };
    path.components().map(component).collect()
}

/// One line of bounded length that does not command the terminal, whatever file its parts came
/// from.
fn presentable(message: String) -> String {
    let message = if message.len() > MOST_BYTES { shortened(&message) } else { message };
    if !message.chars().any(unfit) {
        return message;
    }
    let mut out = String::with_capacity(message.len() + 16);
    for c in message.chars() {
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            c if unfit(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// The beginning and the end of a message, each cut between characters.
fn shortened(message: &str) -> String {
    let (mut head, mut tail) = (MOST_BYTES - END_BYTES, message.len() - END_BYTES);
    while !message.is_char_boundary(head) {
        head -= 1;
    }
    while !message.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{} [... {} bytes left out ...] {}", &message[..head], tail - head, &message[tail..])
}

/// Line breaks of any kind, terminal commands, and marks that reverse the direction of the text
/// around them.
fn unfit(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Self::internal(format!("tensor library: {source}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_system_names_what_was_asked_for() {
        let message = |path: &str| {
            let source = std::io::Error::from_raw_os_error(28);
            Error::io("write", Path::new(path), source).to_string()
        };
        let told = "cannot write run/step-4/adam.moments: No space left on device";
        assert_eq!(message("run/.step-4.5205-4.tmp/adam.moments"), told);
        assert_eq!(message("run/step-4/adam.moments"), told);
        for own in [".hidden", ".a.tmp", ".a.b-c.tmp", "a.1-2.tmp"] {
            assert_eq!(message(own), told.replace("run/step-4/adam.moments", own));
        }
    }

    #[test]
    fn a_message_is_one_bounded_line_that_keeps_its_ends() {
        let plain = "a.toml:3: expected \u{e9}, found \"x\"";
        assert_eq!(Error::data(plain).to_string(), plain);
        let stopped = Error::new(ErrorKind::Interrupted(2), "stopped by SIGINT").context("step 2");
        assert_eq!(stopped.to_string(), "stopped by SIGINT");
        let odd = Error::data("a\nb\u{1b}[31mc\u{202e}d").context("x\ry").to_string();
        assert_eq!(odd, "x y: a b\\u{1b}[31mc\\u{202e}d");
        for filler in ["x", "\u{65e5}", "\u{1f642}", "\n", "\u{7}"] {
            let message = format!("here: found {}; do this", filler.repeat(1 << 20));
            let found = Error::usage(message).context("there").to_string();
            assert!(
                found.starts_with("there: here: found ") && found.ends_with("; do this"),
                "{found}"
            );
            assert!(
                found.contains("bytes left out")
                    && found.len() < 8 * MOST_BYTES
                    && found.lines().count() == 1
            );
        }
    }
}
