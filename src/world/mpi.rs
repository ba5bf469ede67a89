//! Processes that `mpirun` or `srun` started, by MPI (Open MPI, MPICH or what speaks their ABI).

use super::Transport;
use crate::error::{Error, Result};
use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Between two looks at whether a long wait is over.
const PATIENCE: Duration = Duration::from_millis(20);

/// MPI, started and not yet finished.
pub(super) struct Mpi {
    rank: usize,
    size: usize,
    /// MPI ends when it is dropped.
    universe: Mutex<Option<Universe>>,
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MPI process {} of {}", self.rank, self.size)
    }
}

impl Mpi {
    /// Joins the others. Steps run on a thread of a pool, so calls come from different threads, one
    /// at a time.
    pub(super) fn start() -> Result<Self> {
        let started = mpi::initialize_with_threading(Threading::Serialized);
        let Some((universe, provided)) = started else {
            return Err(Error::internal("MPI was started twice"));
        };
        if provided < Threading::Serialized {
            return Err(Error::usage(format!(
                "this MPI serves {provided:?} threads alone, and calls come from several, one at a time; use one that was \
                 built with thread support"
            )));
        }
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        Ok(Self { rank, size, universe: Mutex::new(Some(universe)) })
    }
}

/// `Open MPI v4.1.4`, `MPICH Version: 4.0.2`.
pub(super) fn version() -> Result<String> {
    let text = mpi::environment::library_version()
        .map_err(|e| Error::internal(format!("MPI calls itself something unreadable: {e}")))?;
    let first = text.lines().next().unwrap_or_default();
    let name = first.split(',').next().unwrap_or_default();
    Ok(name.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn world() -> SimpleCommunicator {
    SimpleCommunicator::world()
}

/// Counts and where each part begins, as MPI wants them. What is handed over at once is bounded
/// ([`crate::optim::Shards`]) far below 2^31.
fn parts(counts: &[usize]) -> (Vec<i32>, Vec<i32>) {
    let counts: Vec<i32> = counts.iter().map(|&n| n as i32).collect();
    let begins = counts.iter().scan(0, |at, n| {
        let begin = *at;
        *at += n;
        Some(begin)
    });
    (counts.clone(), begins.collect())
}

impl Transport for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_gather(&self, mine: &[u8]) -> Vec<Vec<u8>> {
        let mut lengths = vec![0u64; self.size];
        world().all_gather_into(&(mine.len() as u64), &mut lengths[..]);
        let lengths: Vec<usize> = lengths.into_iter().map(|n| n as usize).collect();
        let mut all = vec![0u8; lengths.iter().sum()];
        let (counts, begins) = parts(&lengths);
        world().all_gather_varcount_into(
            mine,
            &mut PartitionMut::new(&mut all[..], counts, &begins[..]),
        );
        let mut rest = &all[..];
        let one = |n: &usize| {
            let (first, others) = rest.split_at(*n);
            rest = others;
            first.to_vec()
        };
        lengths.iter().map(one).collect()
    }

    fn all_to_all(&self, send: &[f32], sent: &[usize], into: &mut [f32], received: &[usize]) {
        let ((sent, from), (received, to)) = (parts(sent), parts(received));
        world().all_to_all_varcount_into(
            &Partition::new(send, sent, &from[..]),
            &mut PartitionMut::new(into, received, &to[..]),
        );
    }

    fn wait(&self) {
        // MPI's own waiting keeps a core busy.
        let mut request = world().immediate_barrier();
        while let Err(unfinished) = request.test() {
            request = unfinished;
            std::thread::sleep(PATIENCE);
        }
    }

    fn abort(&self, status: i32) -> ! {
        world().abort(status)
    }

    fn finish(&self) {
        drop(self.universe.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
