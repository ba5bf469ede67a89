//! What lies on disk and on the Hub: names of models, the models themselves, checkpoints, exports.

#[doc(hidden)]
pub mod checkpoint;
pub mod export;
pub mod hub;
#[doc(hidden)]
pub mod names;
mod open;
pub mod preset;
pub mod weights;

pub use open::{OpenModel, open_model, open_tokens, open_tokens_by};
