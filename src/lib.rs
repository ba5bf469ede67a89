//! eslm-kd distils and pretrains GPT-2-family language models on the tokens that matter.
//!
//! A run is **student x teacher x (score x selector x objective) on data, on a machine**: independent choices that meet
//! in one function, [`train::Trainer::step`]. A score ranks the tokens of a batch from one pass over the student's (and,
//! if need be, the teacher's) logits; a value-at-risk selector keeps the tail of that ranking; the kept tokens alone
//! carry the loss, cross-entropy mixed with the divergence from the teacher (ESLM, arXiv 2505.19893).
//!
//! The command `eslm-kd` is a thin layer over this library; `examples/library.rs` is the same in forty lines.
//!
//! # The modules, from the command line down
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | one file per verb; the only module that prints |
//! | [`config`] | a run file as written, resolved to a [`config::Plan`]; what a plan costs ([`config::arithmetic`]) |
//! | [`data`] | text to token files ([`data::prepare`]), token files to batches ([`data::loader`]), tokenizers, stories |
//! | [`hub`] | models of the Hugging Face Hub, verified, in the cache that Python's library shares |
//! | [`resolve`] | what a person means by MODEL: a folder, a run, a preset, a Hub id |
//! | [`model`] | GPT-2: shape, parameters, trunk forward and backward, init, weights in and out, presets |
//! | [`teacher`] | a frozen model that runs beside the student |
//! | [`select`] | scores, and the value-at-risk selector |
//! | [`ops`] | the operations of model and training, each with a slow reference and a CPU kernel |
//! | [`train`] | a step, a run, the session it opens, schedule, checkpoints, events |
//! | [`eval`] | perplexity, generation, export |
//! | [`compare`] | methods x seeds: arms, budgets, runs, evaluation, statistics, report |
//! | [`allocator`], [`error`], [`files`], [`guard`], [`progress`], [`rng`], [`signal`] | what all of them share |
//!
//! # Rules that hold everywhere
//!
//! * A loss is a sum and a count. The one division is by the kept tokens of a whole optimizer step, so micro-batches and
//!   selection add up.
//! * Results do not depend on the number of threads, bit for bit. Random draws are functions of (seed, stream, index).
//! * Files and folders appear whole or not at all. Long phases poll [`interrupt::check`].
//! * Errors are [`Error`]: one message for people, a kind for programs.

pub mod allocator;
pub mod cli;
pub mod compare;
pub mod config;
pub mod cost;
pub mod data;
pub mod error;
pub mod eval;
pub mod files;
pub mod guard;
pub mod inspect;
pub mod interrupt;
pub mod loss;
pub mod model;
pub mod ops;
pub mod optim;
pub mod progress;
pub mod report;
pub mod rng;
pub mod select;
pub mod store;
pub mod teacher;
pub mod train;

pub use error::{Error, ErrorKind, Result};
