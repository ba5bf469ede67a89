//! A teacher's signal on disk: what it says of every position of a token file, written once and read
//! by any run on these data, in any order.
//!
//! A signal is a folder of shards, `00000-of-00001.signal`. A position is the place of an input in the
//! token file; what is stored for it speaks of the token behind it. So neither seed, nor batch, nor
//! order, nor epoch of a run matters, and live draws take the same key: a run learns the same from a
//! teacher beside it and from what that teacher wrote, bit for bit. Layers of the format: `shard`
//! (file), `block` (some consecutive positions), `codec` (a position), `bits`. Several signals are heard
//! as one by `mix`.

mod bits;
mod block;
mod check;
mod codec;
mod header;
mod import;
mod mix;
mod shard;
mod stored;
#[cfg(test)]
mod tests;
mod write;

pub use check::{Inspected, Listed, Verified, inspect, list, verify};
pub use header::{DataId, Header, Kind, MOST_DRAWS, Shard, TeacherId, Window};
pub use import::{ImportOptions, import};
pub use mix::{Mixed, MixedPart, mix};
pub use shard::FORMAT_VERSION;
pub use stored::{Fetched, Stored, is_signal};
pub use write::{WriteOptions, Written, write};
