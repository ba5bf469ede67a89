//! The one integration test binary: each file tests one promise of the crate from outside.

mod cli;
mod hub;
mod models;
mod parity;
mod steps;
mod support;
