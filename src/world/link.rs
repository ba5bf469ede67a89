//! Numbers from GPU to GPU, without a way through the host.

use crate::error::Result;
use candle_core::Device;
use std::fmt::Debug;

/// One part of an exchange: `n` numbers (f32) at an address in this GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// To one other process.
    Send {
        /// Whose `Receive` it is.
        to: usize,
        /// Where they are.
        address: u64,
        /// Numbers.
        n: usize,
    },
    /// From one other process.
    Receive {
        /// Whose `Send` it is.
        from: usize,
        /// Where they come to.
        address: u64,
        /// Numbers.
        n: usize,
    },
    /// From one to all, in place.
    Broadcast {
        /// Whose numbers they are.
        root: usize,
        /// Where they are, or come to.
        address: u64,
        /// Numbers.
        n: usize,
    },
}

/// What carries numbers between the GPUs of a run's processes.
pub trait Link: Debug + Send + Sync {
    /// Whether it reaches the memory of `device`.
    fn is_on(&self, device: &Device) -> bool;

    /// Begins an exchange, which reads what the model's stream has made so far and goes on beside what it
    /// is handed from now on. Collective: what goes from one process to another is in the same order on
    /// both sides, and broadcasts are in the same order for all.
    ///
    /// # Safety
    /// Every address is of live memory of that length on this process's GPU, which stays so, with nobody
    /// else writing to it, until [`Link::arrive`] has been called and the model's stream has come so far.
    #[allow(unsafe_code)]
    unsafe fn exchange(&self, moves: &mut dyn Iterator<Item = Move>) -> Result<()>;

    /// The same of `n` numbers of every process, at `mine`, which come to `all` [processes, n].
    ///
    /// # Safety
    /// As [`Link::exchange`].
    #[allow(unsafe_code)]
    unsafe fn all_gather(&self, mine: u64, all: u64, n: usize) -> Result<()>;

    /// What the model's stream is handed from now on finds all exchanges done.
    fn arrive(&self) -> Result<()>;

    /// Says that no more will be exchanged. To be called once, by all.
    fn end(&self);
}
