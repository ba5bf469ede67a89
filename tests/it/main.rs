//! The one integration test binary: each file tests one promise of the crate from outside.

mod cli;
mod compare;
mod hub;
mod hub_binary;
mod hub_store;
mod inspect;
mod laws;
mod models;
mod parity;
mod run;
mod sampled;
mod selection;
mod steps;
mod support;
