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
    /// Whether the process did for all of them what failed.
    for_all: bool,
}

/// The bytes of an outcome: of this process, or of what it did for all.
pub(super) fn written(mine: &Result<Vec<u8>>, for_all: bool) -> Vec<u8> {
    match mine {
        Ok(bytes) => [&[WELL], &**bytes].concat(),
        Err(e) => {
            let told = Told {
                code: e.exit_code(),
                message: e.to_string(),
                go_on: e.go_on().map(str::to_string),
                for_all,
            };
            // Three strings and a number always have a form.
            [&[BADLY], &*serde_json::to_vec(&told).unwrap_or_default()].concat()
        }
    }
}

/// What all said, or the error that ends all: the first that no signal caused, else the first.
pub(super) fn read(heard: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
    let one =
        |(rank, said): (usize, &Vec<u8>)| error_in(said).map(|(e, for_all)| (rank, e, for_all));
    let failed: Vec<(usize, Error, bool)> = heard.iter().enumerate().filter_map(one).collect();
    let is_signal = |e: &Error| matches!(e.kind(), ErrorKind::Interrupted(_));
    let Some((rank, e, for_all)) =
        failed.iter().find(|(_, e, _)| !is_signal(e)).or_else(|| failed.first()).cloned()
    else {
        return Ok(heard.iter().map(|said| said[1..].to_vec()).collect());
    };
    let size = heard.len();
    let of_one = !for_all && failed.len() < size;
    Err(if of_one { e.context(format!("process {rank} of {size}")) } else { e })
}

/// The error that a process told, and whether it is of what it did for all.
fn error_in(said: &[u8]) -> Option<(Error, bool)> {
    match said.split_first() {
        Some((&WELL, _)) => None,
        Some((&BADLY, text)) => Some(match serde_json::from_slice::<Told>(text) {
            Ok(Told { code, message, go_on, for_all }) => {
                let e = Error::new(kind_of(code), message);
                (go_on.map_or_else(|| e.clone(), |go_on| e.clone().going_on_with(go_on)), for_all)
            }
            Err(e) => (Error::internal(format!("a process failed and cannot say how: {e}")), false),
        }),
        _ => Some((Error::internal("a process said nothing"), false)),
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
            let heard = vec![written(&Err(Error::new(kind, "what")), false)];
            let e = read(&heard).unwrap_err();
            assert_eq!((e.kind(), e.to_string()), (kind, "what".to_string()));
        }
        assert!(read(&[Vec::new()]).is_err());
        assert_eq!(read(&[written(&Ok(vec![7]), false)]).unwrap(), [[7]]);
    }
}
