//! Panics of libraries that parse other people's files, turned into errors.
//!
//! Parsers below us (Parquet, tokenizers) are careful but not free of panics on damaged files. Such
//! a panic says that the file is bad, so it ends as an error about the file.

use crate::error::{Error, Result};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `parse`; a panic in it is an [`Error::data`] that names `what` was read and the panic's
/// message. Whatever `parse` was changing must not be used after that.
pub fn guarded<T>(what: impl std::fmt::Display, parse: impl FnOnce() -> T) -> Result<T> {
    let outer = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(parse));
    GUARDED.set(outer);
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Error::data(format!("{what}: damaged in a way its parser did not expect ({text})"))
    })
}

/// Keeps guarded panics from being printed as well; for the program, since the hook belongs to the
/// whole process.
pub fn quiet_guarded_panics() {
    let before = take_hook();
    set_hook(Box::new(move |info| {
        if !GUARDED.get() {
            before(info);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_about_the_file() {
        assert_eq!(guarded("a.x", || 7).unwrap(), 7);
        let error = guarded("a.x", || "x".parse::<u8>().unwrap()).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Data);
        assert!(
            error.to_string().starts_with("a.x: damaged")
                && error.to_string().contains("InvalidDigit"),
            "{error}"
        );
        assert!(!GUARDED.get());
    }
}
