//! How parameters move: AdamW, the learning rate over a run, and who steps which of them.

pub mod adamw;
mod held;
pub mod schedule;
mod shards;

pub use held::Held;
pub use shards::Shards;
