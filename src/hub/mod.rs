//! What the Hub gives us, verified; the cache layout that Python's hub library shares.
//!
//! hf-hub's client answers what a repository holds (the model API). Everything that ends up in the cache goes
//! through `transfer.rs` instead, by hand, because hf-hub 1.0.0
//!
//! * never checks the status of the GET that fills the cache: an error page becomes the blob of a good ETag,
//! * checks neither length nor hash before the rename, has no resume and no time-outs,
//! * follows redirects when it asks for a file's metadata, so that the answer for a large file is the CDN's, without
//!   hash and commit, and takes the length of a redirect's body for the file's,
//! * joins file names from the server to paths as they come,
//! * reads neither HF_HUB_OFFLINE nor a stop signal.
//!
//! Each was seen with hf-hub against the server of `tests/it/support/hub_server.rs` (an error page, a short body and a
//! flipped bit were all cached as good), and has its test in `tests/it/hub.rs`.

pub mod cache;
mod client;
mod fetch;
mod options;
pub mod store;
mod transfer;

pub use fetch::{Fetched, What, fetch_model, snapshot_files};
pub use options::HubOptions;
