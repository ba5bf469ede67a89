//! Which tokens matter: a score per position, and the value-at-risk selector that keeps its tail.

mod score;
mod selector;

pub use score::{ScoreContext, scores};
pub use selector::{Selection, Selector, kept_of};
