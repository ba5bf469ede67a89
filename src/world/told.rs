//! What a process says at an agreement: what it has, or why it has nothing.

use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

const WELL: u8 = 0;
const BADLY: u8 = 1;

/// An error as it travels.
#[derive(Serialize, Deserialize)]
struct Told {
    /// [`Error::exit_code`], which knows every kind.
    code: i32,
    message: String,
    go_on: Option<String>,
}

/// The bytes of an outcome.
pub(super) fn written(mine: &Result<Vec<u8>>) -> Vec<u8> {
    match mine {
        Ok(bytes) => [&[WELL], &**bytes].concat(),
        Err(e) => {
            let told = Told {
                code: e.exit_code(),
                message: e.to_string(),
                go_on: e.go_on().map(str::to_string),
            };
            // Three strings and a number always have a form.
            [&[BADLY], &*serde_json::to_vec(&told).unwrap_or_default()].concat()
        }
    }
}

/// What all said, or the error that ends all: the first that no signal caused, else the first.
pub(super) fn read(heard: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
    let failed: Vec<(usize, Error)> =
        heard.iter().enumerate().filter_map(|(rank, said)| Some((rank, error_in(said)?))).collect();
    let is_signal = |e: &Error| matches!(e.kind(), ErrorKind::Interrupted(_));
    let Some((rank, e)) =
        failed.iter().find(|(_, e)| !is_signal(e)).or_else(|| failed.first()).cloned()
    else {
        return Ok(heard.iter().map(|said| said[1..].to_vec()).collect());
    };
    let size = heard.len();
    Err(if failed.len() == size { e } else { e.context(format!("process {rank} of {size}")) })
}

fn error_in(said: &[u8]) -> Option<Error> {
    match said.split_first() {
        Some((&WELL, _)) => None,
        Some((&BADLY, text)) => Some(match serde_json::from_slice::<Told>(text) {
            Ok(Told { code, message, go_on }) => {
                let e = Error::new(kind_of(code), message);
                match go_on {
                    Some(go_on) => e.going_on_with(go_on),
                    None => e,
                }
            }
            Err(e) => Error::internal(format!("a process failed and cannot say how: {e}")),
        }),
        _ => Some(Error::internal("a process said nothing")),
    }
}

fn kind_of(code: i32) -> ErrorKind {
    let kinds = [
        ErrorKind::Usage,
        ErrorKind::Data,
        ErrorKind::Hub,
        ErrorKind::NonFinite,
        ErrorKind::Io,
        ErrorKind::Internal,
    ];
    let known = kinds.into_iter().find(|kind| Error::new(*kind, "").exit_code() == code);
    known.unwrap_or(ErrorKind::Interrupted(code - 128))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_arrives() {
        for kind in [
            ErrorKind::Usage,
            ErrorKind::Data,
            ErrorKind::Hub,
            ErrorKind::NonFinite,
            ErrorKind::Io,
            ErrorKind::Internal,
            ErrorKind::Interrupted(15),
        ] {
            let heard = vec![written(&Err(Error::new(kind, "what")))];
            let e = read(&heard).unwrap_err();
            assert_eq!((e.kind(), e.to_string()), (kind, "what".to_string()));
        }
        assert!(read(&[Vec::new()]).is_err());
        assert_eq!(read(&[written(&Ok(vec![7]))]).unwrap(), [[7]]);
    }
}
