//! eslm-kd distils and pretrains small language models on the tokens that matter.
//!
//! A run is **student x teacher x (score x selector x objective) on data, on a machine**:
//! independent choices that meet in one function, [`train::Trainer::step`]. A score ranks the
//! tokens of a batch from one pass over the student's (and, if need be, the teacher's) logits; a
//! value-at-risk selector keeps the tail of that ranking; the kept tokens alone carry the loss,
//! cross-entropy mixed with the divergence from the teacher (ESLM, arXiv 2505.19893).
//!
//! # A whole training, in memory
//!
//! ```
//! use eslm_kd::prelude::*;
//! use std::sync::Arc;
//!
//! // 4,096 tokens of a "text" in which a rule says what comes next.
//! let ids: Vec<u32> = (0..4096).map(|i| i * i % 31).collect();
//! let origin = TokenOrigin { vocab_size: 32, eot: 31, tokenizer_hash: [0; 32] };
//! let tokens = Arc::new(TokenFile::from_tokens(&ids, origin, 1, 0)?);
//!
//! // Every value that is not set has the default of the table of keys.
//! let plan = Plan::builder()
//!     .steps(40)
//!     .context(16)
//!     .sequences(8)
//!     .score(Score::Loss)
//!     .alpha(0.3)
//!     .learning_rate(1e-2)
//!     .device(DeviceSpec::Cpu)
//!     .build()?;
//!
//! // 32 tokens, 16 positions, width 32, 2 blocks, 2 heads.
//! let student = Gpt2::scratch(Gpt2Config::new(32, 16, 32, 2, 2), plan.seed, &Device::Cpu)?;
//! let plan = settle(&student.config, &plan);
//! let loader = Loader::new(tokens.clone(), plan.data.context, plan.seed)?;
//! let mut trainer = Trainer::new(plan.clone(), student, None)?;
//! for step in 0..plan.steps {
//!     let cursor = step * plan.data.rows as u64;
//!     let report = trainer.step(step, cursor, &loader.batch(cursor, plan.data.rows)?)?;
//!     assert!(report.sums.kept <= report.sums.tokens);
//! }
//!
//! let found = evaluate(&trainer.student, &tokens, EvalOptions::new(16), &Silent)?;
//! assert!(found.nll < 1.0, "{} nats per token; 3.4 at the start", found.nll);
//! # Ok::<(), Error>(())
//! ```
//!
//! A run with a folder (checkpoints, metrics, resume, the exported model) is
//! [`train::session::Session::open`] and [`train::run::Run`]; what it has to say goes to an
//! [`train::events::EventSink`]. `examples/` shows a loop of one's own, one's own events, tokens in
//! memory, and evaluation with generation. The command `eslm-kd` is a thin layer over this library.
//!
//! # The modules, from the top down
//!
//! | module | holds |
//! |---|---|
//! | [`prelude`] | what most programs need, in one `use` |
//! | [`compare`], [`inspect`] | methods x seeds: arms, budgets, statistics, pages; what selection sees in a text |
//! | [`train`] | a step, a run, the session it opens, events |
//! | [`eval`] | perplexity, generation |
//! | [`store`] | models by name, presets, the Hugging Face Hub, weights, checkpoints, export |
//! | [`optim`], [`teacher`], [`cost`] | AdamW and schedules; a frozen teacher; FLOPs, memory and disk of a plan |
//! | [`model`], [`select`] | a decoder by its parts, forward and backward; scores, and the value-at-risk selector |
//! | [`loss`] | cross-entropy mixed with divergences, at the head |
//! | `ops` | the operations of a model, each with a slow reference, a CPU kernel and a GPU kernel |
//! | [`config`], [`data`] | a run file as written, resolved to a [`config::Plan`]; text to tokens, tokens to batches |
//! | [`world`] | the processes that train one model together |
//! | [`error`], [`progress`], [`interrupt`] | what all of them share |
//!
//! # Rules that hold everywhere
//!
//! * A loss is a sum and a count. The one division is by the kept tokens of a whole optimizer step,
//!   so micro-batches and selection add up.
//! * Results do not depend on the number of threads, bit for bit. Random draws are functions of
//!   (seed, stream, index).
//! * Files and folders appear whole or not at all. Long phases poll [`interrupt::check`].
//! * Errors are [`Error`]: one message for people, a kind for programs.

#[doc(hidden)]
pub mod allocator;
#[doc(hidden)]
pub mod cli;
pub mod compare;
pub mod config;
pub mod cost;
pub mod data;
#[doc(hidden)]
pub mod doctor;
pub mod error;
pub mod eval;
#[doc(hidden)]
pub mod files;
#[doc(hidden)]
pub mod guard;
pub mod inspect;
pub mod interrupt;
#[doc(hidden)]
pub mod json;
pub mod loss;
mod machine;
pub mod model;
#[doc(hidden)]
pub mod ops;
pub mod optim;
pub mod prelude;
pub mod progress;
#[doc(hidden)]
pub mod report;
#[doc(hidden)]
pub mod rng;
#[doc(hidden)]
pub mod runs;
pub mod select;
pub mod signal;
pub mod store;
pub mod teacher;
#[doc(hidden)]
pub mod testing;
pub mod train;
pub mod world;

pub use error::{Error, ErrorKind, Result};
