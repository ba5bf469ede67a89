//! What a stream is: a terminal so many columns wide, which may show colours, or a pipe or file.

use std::io::IsTerminal;
use std::os::fd::AsFd;

/// Columns that text is laid out for where nobody says how many there are.
pub const PLAIN_WIDTH: usize = 80;
/// Nothing is laid out for fewer.
const LEAST_WIDTH: usize = 40;

/// A stream as text is laid out for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Screen {
    /// Columns of the terminal; None where there is none, so that what a program reads never
    /// depends on a window.
    pub width: Option<usize>,
    /// Whether colours and bold letters may be shown.
    pub colours: bool,
    /// Whether lines can be drawn over (not on `TERM=dumb`).
    pub redraws: bool,
}

impl Screen {
    /// Standard output.
    pub fn of_stdout() -> Self {
        Self::of(&std::io::stdout())
    }

    /// Standard error.
    pub fn of_stderr() -> Self {
        Self::of(&std::io::stderr())
    }

    fn of(stream: &(impl IsTerminal + AsFd)) -> Self {
        if !stream.is_terminal() {
            return Self::default();
        }
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let dumb = var("TERM").is_some_and(|term| term == "dumb");
        // A terminal that does not know its size has none of either; one with columns and no rows
        // is made by `stty cols`.
        let size = rustix::termios::tcgetwinsize(stream).ok();
        let width = size.map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
        Self {
            width: Some(width.unwrap_or(PLAIN_WIDTH).max(LEAST_WIDTH)),
            colours: !dumb && var("NO_COLOR").is_none(),
            redraws: !dumb,
        }
    }

    /// `text` in a style of [`BOLD`] and its like, where the stream shows styles.
    pub fn styled(&self, style: &str, text: &str) -> String {
        if self.colours { format!("{style}{text}{RESET}") } else { text.to_string() }
    }
}

/// Bold letters: headings.
pub const BOLD: &str = "\x1b[1m";
/// Bold and underlined: what is marked in a text.
pub const MARK: &str = "\x1b[1;4m";
/// Bold red: errors.
pub const RED: &str = "\x1b[1;31m";
/// Bold yellow: warnings.
pub const YELLOW: &str = "\x1b[1;33m";
/// The end of a style.
pub const RESET: &str = "\x1b[0m";
