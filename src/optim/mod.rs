//! How parameters move: AdamW, the learning rate over a run, and who steps which of them.

pub mod adamw;
mod held;
pub mod schedule;
mod shards;
mod travel;

pub use held::Held;
pub use shards::Shards;
pub use travel::{Arrived, Travel};
