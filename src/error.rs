//! One error type for the whole crate: what was expected, what was found, where, and what to do next.

use std::fmt;
use std::path::Path;

/// Shorthand used by every fallible function of the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, as far as a caller or a script has to tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The command line or a config file asks for something that does not exist or does not fit together.
    Usage,
    /// An input file, token file, checkpoint or model folder is missing, damaged or of the wrong kind.
    Data,
    /// The Hub could not be reached, refused, or sent something that failed verification.
    Hub,
    /// A loss, gradient or score stopped being finite; nothing was stepped with it.
    NonFinite,
    /// SIGINT (130) or SIGTERM (143) asked the process to stop; state was saved first.
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
}

impl Error {
    /// An error of the given kind. The message says what was expected, what was found, where, and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
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
        Self::new(ErrorKind::Io, format!("cannot {action} {}: {source}", path.display()))
    }

    /// The kind, for programs.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Puts where it happened in front of the message.
    #[must_use]
    pub fn context(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// The process exit status that belongs to the kind: 2 usage, 3 data, 4 Hub, 5 non-finite, 6 I/O,
    /// 128 + signal when interrupted, 1 otherwise.
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
