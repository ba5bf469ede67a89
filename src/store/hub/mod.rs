//! What the Hub gives us, verified; the cache layout that Python's hub library shares.
//!
//! hf-hub's client says how the model API is asked what a repository holds. Everything that ends up
//! in the cache goes through `exchange.rs` and `transfer.rs` instead, because hf-hub 0.5.0 and
//! 1.0.0
//!
//! * check neither length nor hash before the rename, have no time-outs, and (1.0.0) not even the
//!   status of the GET that fills the cache: an error page becomes the blob of a good ETag,
//! * join file names from the server to paths as they come,
//! * read neither HF_HUB_OFFLINE nor a stop signal.
//!
//! Each was seen with hf-hub 1.0.0 against the server of `tests/it/support/hub_server.rs` (an error
//! page, a short body and a flipped bit were all cached as good), and has its test in
//! `tests/it/hub.rs`.

#[doc(hidden)]
pub mod audit;
#[doc(hidden)]
pub mod cache;
mod client;
mod exchange;
mod fetch;
pub mod names;
mod options;
pub(crate) mod paths;
mod proxy;
mod retry;
mod roots;
mod transfer;

pub(crate) use cache::holds_tokenizer;
pub(crate) use fetch::lacking_tokenizer;
pub use fetch::{Fetched, fetch_model, snapshot_files};
pub use names::What;
pub use options::HubOptions;
