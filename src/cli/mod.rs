//! One file per verb; verbs are thin.

pub mod download;
