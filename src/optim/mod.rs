//! How parameters move: AdamW, the learning rate over a run, and who steps which of them.

pub mod adamw;
pub mod schedule;
mod shards;

pub use shards::Shards;
