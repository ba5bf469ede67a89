//! How parameters move: AdamW, and the learning rate over a run.

pub mod adamw;
pub mod schedule;
