//! A decoder: shapes, parts, parameters, trunk and head, forward and backward by hand.

mod cache;
mod config;
mod early_exit;
mod gpt2;
mod heads;
mod init;
mod params;
pub mod parts;
mod residual;
mod row_sampler;
#[cfg(test)]
pub(crate) mod testing;

pub use cache::Cache;
pub use config::Gpt2Config;
pub use early_exit::Partial;
pub use gpt2::{Flow, Gpt2, Reached, Tape};
pub use params::{Block, BlockOf, Layout, ParamKind, ParamSet, ParamSpec};
pub use parts::{Family, Parts};
pub use row_sampler::{Chosen, RowBudget, RowSampler};
