//! Input that is damaged or made to do harm: whatever a file says, the answer is a value or one
//! clear error. No panic, no allocation by an unchecked length, no megabytes of someone else's
//! words in a message.
//!
//! `formats` mutates valid files of every kind; `memory` runs the program with little address
//! space. The mutations are the same in every run. More and other ones: `PROPTEST_CASES=20000
//! PROPTEST_RNG_SEED=7 cargo test --release --test it hostile`.

mod formats;
mod memory;
mod mutate;
mod named;
pub mod samples;
