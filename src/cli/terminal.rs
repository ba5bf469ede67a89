//! Standard error as bars draw on it.

use crate::report::text::{PLAIN_WIDTH, Screen};
use indicatif::TermLike;
use std::io::{Result, Write};
use std::sync::{Mutex, PoisonError};

/// As wide as [`Screen`] says, also where the terminal knows its columns and no rows, which
/// indicatif takes for 80 columns. Collects what is drawn, and shows it at once.
#[derive(Debug, Default)]
pub(super) struct Stderr(Mutex<Vec<u8>>);

impl Stderr {
    fn put(&self, text: &str) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(text.as_bytes());
        Ok(())
    }

    /// Moves the cursor by `n` places; the letter is the direction (ECMA-48, 8.3.18 to 8.3.22).
    fn go(&self, n: usize, direction: char) -> Result<()> {
        if n == 0 { Ok(()) } else { self.put(&format!("\x1b[{n}{direction}")) }
    }
}

impl TermLike for Stderr {
    fn width(&self) -> u16 {
        let width = Screen::of_stderr().width.unwrap_or(PLAIN_WIDTH);
        u16::try_from(width).unwrap_or(u16::MAX)
    }

    fn move_cursor_up(&self, n: usize) -> Result<()> {
        self.go(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> Result<()> {
        self.go(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> Result<()> {
        self.go(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> Result<()> {
        self.go(n, 'D')
    }

    fn write_line(&self, text: &str) -> Result<()> {
        self.put(text)?;
        self.put("\n")
    }

    fn write_str(&self, text: &str) -> Result<()> {
        self.put(text)
    }

    fn clear_line(&self) -> Result<()> {
        self.put("\r\x1b[2K")
    }

    fn flush(&self) -> Result<()> {
        let mut drawn = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stderr = std::io::stderr().lock();
        stderr.write_all(&drawn)?;
        drawn.clear();
        stderr.flush()
    }
}
