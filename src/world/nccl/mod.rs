//! NCCL: numbers from GPU to GPU, and for processes that `torchrun` started everything else, too.
//!
//! The library is opened at run time, so that the program starts where it is absent. All of its work is
//! on a stream of its own: it waits for the model's where it reads what that made, and is waited for
//! where the model reads what came.

#[cfg(feature = "nccl")]
mod device;
#[cfg(test)]
pub(crate) mod emulator;
mod library;
mod meeting;
mod torchrun;

#[cfg(feature = "nccl")]
pub(super) use device::identity;
#[cfg(test)]
pub(crate) use emulator::{in_linked_threads, in_threads_beside};
#[cfg(feature = "nccl")]
pub(super) use torchrun::Torchrun;

use super::{Link, Move, World};
use crate::error::{Error, Result};
use candle_core::Device;
#[cfg(feature = "nccl")]
use candle_core::cuda_backend::CudaDevice;
use library::{BYTES, FLOATS, Library, Pointer, UniqueId};
use std::any::Any;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For so long a wait looks whether it is over as often as it can; then it sleeps between looks.
const EAGER: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_micros(100);

/// What NCCL needs of a GPU: a stream for its work, beside the one that the model's is on.
trait Gpu: fmt::Debug + Send + Sync {
    /// Makes the calling thread's calls of CUDA go to it.
    fn bind(&self) -> Result<()>;
    /// NCCL's stream.
    fn stream(&self) -> Pointer;
    /// Work that is handed to NCCL's stream from now on waits for what the model's has been handed.
    fn after_model(&self) -> Result<()>;
    /// The other way round.
    fn before_model(&self) -> Result<()>;
    /// Whether all is done that NCCL's stream has been handed so far: to be asked again and again.
    fn mark(&self) -> Result<Box<dyn Fn() -> Result<bool> + '_>>;
    /// Memory with these bytes, in the order of NCCL's stream.
    fn upload(&self, bytes: &[u8]) -> Result<Memory>;
    /// So many bytes, of unknown content.
    fn room(&self, bytes: usize) -> Result<Memory>;
    /// What is in `memory` once NCCL's stream has come so far.
    fn download(&self, memory: &Memory) -> Result<Vec<u8>>;
    /// Whether `device` is this one, with the same stream for the model.
    fn is_of(&self, device: &Device) -> bool;
}

/// Bytes on a GPU, freed in the order of NCCL's stream.
struct Memory {
    address: u64,
    held: Box<dyn Any>,
}

/// The processes as NCCL knows them, each with a GPU of its own.
pub(super) struct Nccl {
    rank: usize,
    size: usize,
    library: &'static Library,
    gpu: Box<dyn Gpu>,
    /// None once it has ended.
    comm: Mutex<Option<Comm>>,
}

struct Comm(Pointer);

// SAFETY: NCCL's communicators are used from any thread, by one at a time, as the lock sees to.
unsafe impl Send for Comm {}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NCCL process {} of {} on {:?}", self.rank, self.size, self.gpu)
    }
}

impl Nccl {
    /// Joins the others, who find each other by `id`. Collective.
    fn join(
        library: &'static Library,
        gpu: Box<dyn Gpu>,
        id: UniqueId,
        (rank, size): (usize, usize),
    ) -> Result<Self> {
        gpu.bind()?;
        let mut comm: Pointer = std::ptr::null_mut();
        // SAFETY: it writes one pointer.
        let said = unsafe { (library.init)(&raw mut comm, size as i32, id, rank as i32) };
        library.check(said, None)?;
        Ok(Self { rank, size, library, gpu, comm: Mutex::new(Some(Comm(comm))) })
    }

    /// The link between the GPUs of a world that talks by other means, of which `device` is this
    /// process's. Collective.
    #[cfg(feature = "nccl")]
    pub(super) fn of_device(world: &World, device: &CudaDevice) -> Result<Self> {
        Self::beside(world, Library::here(), || Ok(Box::new(device::Cuda::of(device)?)))
    }

    /// The same of what is opened. Who cannot come says so before the others wait for it.
    fn beside(
        world: &World,
        library: Result<&'static Library>,
        gpu: impl FnOnce() -> Result<Box<dyn Gpu>>,
    ) -> Result<Self> {
        let library = world.together(library)?;
        let gpu = world.together(gpu())?;
        let id = world.from_root(|| Ok(Self::new_id(library)?.0.to_vec()))?;
        let id = id.try_into().map_err(|_| Error::internal("an id of another length"));
        let place = (world.rank(), world.size());
        world.together(id.and_then(|id| Self::join(library, gpu, UniqueId(id), place)))
    }

    /// The version of this system's NCCL.
    #[cfg(feature = "nccl")]
    pub(super) fn version() -> Result<String> {
        Library::here()?.version()
    }

    /// For process 0, which tells the others.
    fn new_id(library: &Library) -> Result<UniqueId> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: it writes one id.
        library.check(unsafe { (library.unique_id)(&raw mut id) }, None)?;
        Ok(id)
    }

    fn comm(&self) -> MutexGuard<'_, Option<Comm>> {
        self.comm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` with the communicator; what it returns is NCCL's word.
    fn with(&self, work: impl FnOnce(&Library, Pointer) -> i32) -> Result<()> {
        self.gpu.bind()?;
        let comm = self.comm();
        let comm = comm.as_ref().ok_or_else(|| Error::internal("NCCL has ended already"))?.0;
        self.library.check(work(self.library, comm), Some(comm))
    }

    /// Does `all` as one operation: nothing in it waits for what comes later in it.
    fn together(&self, all: &mut dyn Iterator<Item = Move>) -> Result<()> {
        let stream = self.gpu.stream();
        self.with(|nccl, comm| {
            // SAFETY: the caller's addresses are of live memory of these lengths, which stays so until
            // the stream has come past this.
            unsafe {
                let mut said = (nccl.group_start)();
                for one in all {
                    if said != 0 {
                        break;
                    }
                    said = match one {
                        Move::Send { to, address, n } => {
                            (nccl.send)(address as Pointer, n, FLOATS, to as i32, comm, stream)
                        }
                        Move::Receive { from, address, n } => {
                            (nccl.receive)(address as Pointer, n, FLOATS, from as i32, comm, stream)
                        }
                        Move::Broadcast { root, address, n } => {
                            let place = address as Pointer;
                            (nccl.broadcast)(place, place, n, FLOATS, root as i32, comm, stream)
                        }
                    };
                }
                let ended = (nccl.group_end)();
                if said == 0 { ended } else { said }
            }
        })
    }

    /// What every process has in `mine`, of the same length for all, one behind the other.
    fn gather(&self, mine: &[u8]) -> Result<Vec<u8>> {
        self.gpu.bind()?;
        let (from, to) = (self.gpu.upload(mine)?, self.gpu.room(mine.len() * self.size)?);
        self.gather_at(from.address, to.address, mine.len(), BYTES)?;
        self.settle()?;
        self.gpu.download(&to)
    }

    fn gather_at(&self, mine: u64, all: u64, n: usize, kind: i32) -> Result<()> {
        let (from, to, stream) = (mine as Pointer, all as Pointer, self.gpu.stream());
        // SAFETY: the caller's addresses are of live memory of these lengths.
        self.with(|nccl, comm| unsafe { (nccl.all_gather)(from, to, n, kind, comm, stream) })
    }

    /// [`super::Transport::all_to_all`] of numbers in the host's memory.
    fn through_the_host(
        &self,
        send: &[f32],
        sent: &[usize],
        into: &mut [f32],
        received: &[usize],
    ) -> Result<()> {
        self.gpu.bind()?;
        let bytes: Vec<u8> = send.iter().flat_map(|x| x.to_le_bytes()).collect();
        let (from, to) = (self.gpu.upload(&bytes)?, self.gpu.room(4 * into.len())?);
        let (mut give, mut take) = (from.address, to.address);
        let mut moves = Vec::new();
        for (other, (&gives, &takes)) in sent.iter().zip(received).enumerate() {
            let both = [
                Move::Send { to: other, address: give, n: gives },
                Move::Receive { from: other, address: take, n: takes },
            ];
            let is_there = |(_, n): &(Move, usize)| *n > 0;
            moves.extend(both.into_iter().zip([gives, takes]).filter(is_there));
            (give, take) = (give + 4 * gives as u64, take + 4 * takes as u64);
        }
        self.together(&mut moves.into_iter().map(|(one, _)| one))?;
        self.settle()?;
        let words = self.gpu.download(&to)?;
        let numbers = words.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word));
        into.iter_mut().zip(numbers).for_each(|(into, x)| *into = x);
        Ok(())
    }

    /// Waits for NCCL's stream. Errs where NCCL or the GPU says that it will not come to an end. Who waits
    /// for one that is gone is ended by the launcher.
    fn settle(&self) -> Result<()> {
        let done = self.gpu.mark()?;
        let begun = Instant::now();
        while !done()? {
            let mut error = 0;
            // SAFETY: it writes one number.
            self.with(|nccl, comm| unsafe { (nccl.async_error)(comm, &raw mut error) })?;
            self.with(|_, _| error)?;
            match begun.elapsed() < EAGER {
                true => std::thread::yield_now(),
                false => std::thread::sleep(PATIENCE),
            }
        }
        Ok(())
    }

    /// Leaves: in peace with all others, or at once.
    fn leave(&self, in_peace: bool) {
        if self.gpu.bind().is_err() {
            return;
        }
        if let Some(Comm(comm)) = self.comm().take() {
            // SAFETY: nobody has the communicator any more. What it says is of no use now.
            unsafe {
                let end = if in_peace { self.library.destroy } else { self.library.abort };
                let _ = end(comm);
            }
        }
    }
}

#[allow(unsafe_code)]
impl Link for Nccl {
    fn is_on(&self, device: &Device) -> bool {
        self.gpu.is_of(device)
    }

    unsafe fn exchange(&self, moves: &mut dyn Iterator<Item = Move>) -> Result<()> {
        self.gpu.bind()?;
        self.gpu.after_model()?;
        self.together(moves)
    }

    unsafe fn all_gather(&self, mine: u64, all: u64, n: usize) -> Result<()> {
        self.gpu.bind()?;
        self.gpu.after_model()?;
        self.gather_at(mine, all, n, FLOATS)
    }

    fn arrive(&self) -> Result<()> {
        self.gpu.bind()?;
        self.gpu.before_model()
    }

    fn end(&self) {
        self.leave(true);
    }
}
