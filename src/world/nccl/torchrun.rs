//! Processes that `torchrun` started, each with a GPU of its own: they find each other by its variables,
//! and NCCL carries all that they say.

use super::Nccl;
use crate::error::Result;
use crate::world::{Link, Transport};
use std::fmt;
use std::sync::Arc;

/// Bytes of a message that travel at once, its length among them; what is longer takes a second turn.
const SHORT: usize = 4 << 10;
const LENGTH: usize = size_of::<u64>();

/// NCCL for everything.
pub(in crate::world) struct Torchrun(Arc<Nccl>);

impl fmt::Debug for Torchrun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Torchrun {
    pub(super) fn new(nccl: Nccl) -> Self {
        Self(Arc::new(nccl))
    }

    /// Joins the others that torchrun started, on the GPU of its `LOCAL_RANK`.
    #[cfg(feature = "nccl")]
    pub(in crate::world) fn start(by: &crate::world::Launched) -> Result<Self> {
        use super::device::Cuda;
        use super::library::Library;
        use super::meeting::Meeting;
        use crate::error::Error;
        let size = by.size.unwrap_or(1);
        let context = |e: Error| e.context(format!("process {} of {size}", by.rank));
        let library = Library::here().map_err(context)?;
        let gpu = Cuda::of_local(by.local_rank).map_err(context)?;
        let place = (by.rank, size);
        let make = || Nccl::new_id(library);
        let id = match (size, std::env::var_os("NCCL_COMM_ID")) {
            (2.., None) => Meeting::of(|name| std::env::var(name).ok())?.id(place, make),
            // NCCL makes the same of it everywhere.
            _ => make(),
        };
        let id = id.map_err(context)?;
        let nccl = Nccl::join(library, Box::new(gpu), id, place).map_err(context)?;
        Ok(Self::new(nccl))
    }

    /// Of one process's `mine`: the lengths of all, and as much of each as goes at once.
    fn told(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut first = (mine.len() as u64).to_le_bytes().to_vec();
        first.extend_from_slice(mine.get(..SHORT - LENGTH).unwrap_or(mine));
        first.resize(SHORT, 0);
        let first = self.0.gather(&first)?;
        let length = |one: &[u8]| {
            let (length, _) = one.split_at(LENGTH);
            u64::from_le_bytes(length.try_into().unwrap_or_default()) as usize
        };
        let mut all: Vec<(usize, Vec<u8>)> =
            first.chunks(SHORT).map(|one| (length(one), one[LENGTH..].to_vec())).collect();
        let longest = all.iter().map(|(length, _)| *length).max().unwrap_or(0);
        if let Some(rest) = longest.checked_sub(SHORT - LENGTH).filter(|rest| *rest > 0) {
            let mut last = mine.get(SHORT - LENGTH..).unwrap_or_default().to_vec();
            last.resize(rest, 0);
            let last = self.0.gather(&last)?;
            all.iter_mut().zip(last.chunks(rest)).for_each(|((_, all), last)| all.extend(last));
        }
        let cut = |(length, mut bytes): (usize, Vec<u8>)| {
            bytes.truncate(length);
            bytes
        };
        Ok(all.into_iter().map(cut).collect())
    }

    /// What came of something that the others wait for: a failure ends all.
    fn or_abort<T>(&self, done: Result<T>) -> T {
        done.unwrap_or_else(|e| {
            eprintln!("error: process {} of {}: {e}", self.rank(), self.size());
            self.abort(e.exit_code())
        })
    }
}

impl Transport for Torchrun {
    fn rank(&self) -> usize {
        self.0.rank
    }

    fn size(&self) -> usize {
        self.0.size
    }

    fn all_gather(&self, mine: &[u8]) -> Vec<Vec<u8>> {
        self.or_abort(self.told(mine))
    }

    fn all_to_all(&self, send: &[f32], sent: &[usize], into: &mut [f32], received: &[usize]) {
        self.or_abort(self.0.through_the_host(send, sent, into, received));
    }

    fn wait(&self) {
        self.or_abort(self.0.gather(&[0]));
    }

    fn abort(&self, status: i32) -> ! {
        self.0.leave(false);
        std::process::exit(status)
    }

    fn finish(&self) {
        self.0.leave(true);
    }

    fn link(&self) -> Option<Arc<dyn Link>> {
        Some(Arc::clone(&self.0) as Arc<dyn Link>)
    }
}
