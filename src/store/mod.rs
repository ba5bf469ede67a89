//! What lies on disk and on the Hub: names of models, the models themselves, checkpoints, exports.
//!
//! [`open`] turns a name into a model, [`shape`] into a shape without weights; [`student`] says how
//! a run's student comes to its first weights.

#[doc(hidden)]
pub mod checkpoint;
#[doc(hidden)]
pub mod context;
pub mod export;
pub mod gguf;
pub mod hub;
#[doc(hidden)]
pub mod identity;
#[doc(hidden)]
pub mod names;
mod open;
#[doc(hidden)]
pub mod places;
pub mod preset;
#[doc(hidden)]
pub mod sizes;
pub mod student;
mod tokens;
#[doc(hidden)]
pub mod verified;
pub mod weights;

pub use names::{Kind, ModelFolder, Where, find};
pub(crate) use open::shape_of;
pub use open::{OpenModel, open, shape};
pub use tokens::{begins_with, behind_first, open_tokens, open_tokens_by};
