//! Pages for people: what `compare` and `inspect` share.

pub mod page;
