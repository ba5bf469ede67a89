//! What most programs need: `use eslm_kd::prelude::*`.
//!
//! Evaluating and generating, with a tokenizer learnt here and a model that has learnt nothing:
//!
//! ```
//! use eslm_kd::prelude::*;
//! use std::sync::Arc;
//!
//! let folder = std::env::temp_dir().join(format!("eslm-kd-prelude-{}", std::process::id()));
//! std::fs::create_dir_all(&folder).unwrap();
//! let text = folder.join("text.txt");
//! std::fs::write(&text, "One fish, two fish, red fish, blue fish.".repeat(20)).unwrap();
//! let options = TrainOptions { vocab_size: 280, ..TrainOptions::default() };
//! let (tokenizer, _) = Tokenizer::train(&[text], &options, &Silent)?;
//!
//! let shape = Gpt2Config::new(tokenizer.vocab_size() as usize, 32, 16, 1, 2);
//! let model = Gpt2::scratch(shape, 1, &Device::Cpu)?;
//! let ids = tokenizer.encode("red fish, blue fish.")?;
//! let tokens = Arc::new(TokenFile::from_tokens(&ids, tokenizer.origin(), 1, 20)?);
//! let found = evaluate(&model, &tokens, EvalOptions::new(8), &Silent)?;
//! assert_eq!(found.tokens, ids.len() as u64 - 1);
//!
//! let options = GenerateOptions { temperature: 0.8, top_k: Some(20), top_p: None, seed: 1, max_tokens: 5 };
//! let mut streamed = String::new();
//! let written = generate(&model, &tokenizer, "two fish", &options, |piece| {
//!     streamed.push_str(piece);
//!     Ok(())
//! })?;
//! assert_eq!(written.text, streamed);
//! # std::fs::remove_dir_all(&folder).unwrap();
//! # Ok::<(), Error>(())
//! ```

#[doc(no_inline)]
pub use crate::config::{
    Activations, BackwardMode, DeviceSpec, Divergence, Dtype, Init, Method, Plan, PlanBuilder,
    Pool, RunFile, Score, Signal,
};
#[doc(no_inline)]
pub use crate::cost::{check_fit, settle};
#[doc(no_inline)]
pub use crate::data::loader::{Batch, Loader};
#[doc(no_inline)]
pub use crate::data::prepare::{DataDir, PrepareOptions, Validation, prepare};
#[doc(no_inline)]
pub use crate::data::tokenizer::Tokenizer;
#[doc(no_inline)]
pub use crate::data::tokens::{TokenFile, TokenOrigin};
#[doc(no_inline)]
pub use crate::data::train_tokenizer::TrainOptions;
#[doc(no_inline)]
pub use crate::error::{Error, ErrorKind, Result};
#[doc(no_inline)]
pub use crate::eval::generate::{GenerateOptions, Generation, generate};
#[doc(no_inline)]
pub use crate::eval::perplexity::{EvalOptions, Evaluation, evaluate};
#[doc(no_inline)]
pub use crate::loss::head::RowStats;
#[doc(no_inline)]
pub use crate::model::{Gpt2, Gpt2Config};
#[doc(no_inline)]
pub use crate::progress::{Progress, Silent};
#[doc(no_inline)]
pub use crate::store::hub::HubOptions;
#[doc(no_inline)]
pub use crate::store::{Kind, OpenModel, Where, open as open_model, open_tokens};
#[doc(no_inline)]
pub use crate::teacher::Teacher;
#[doc(no_inline)]
pub use crate::train::events::{Event, EventSink, Jsonl, StepEvent, Summary, Tee, ValEvent};
#[doc(no_inline)]
pub use crate::train::run::Run;
#[doc(no_inline)]
pub use crate::train::session::Session;
#[doc(no_inline)]
pub use crate::train::{StepReport, Trainer};
#[doc(no_inline)]
pub use candle_core::Device;
