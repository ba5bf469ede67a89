//! The one integration test binary: each file tests one promise of the crate from outside.

mod cli;
mod compare;
mod faults;
mod full_disk;
mod hostile;
mod hub;
mod hub_binary;
mod hub_store;
mod hub_waits;
mod inspect;
mod laws;
mod layers;
mod models;
mod parity;
mod run;
mod sampled;
mod selection;
mod steps;
mod support;
