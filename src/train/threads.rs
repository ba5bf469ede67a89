//! How many CPU threads a run's parallel loops use. Results do not depend on it.

use crate::error::{Error, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Where the parallel loops of a run work: in the pool of the caller, or in one of the run's own.
/// The default is the caller's: a GPU's work stays on the thread that opened it.
#[derive(Debug, Default)]
pub(super) struct Threads(Option<ThreadPool>);

impl Threads {
    /// `threads` of them; 0 is one per core. A caller that is a worker of a pool of that size goes
    /// on in it.
    pub(super) fn of(threads: usize) -> Result<Self> {
        let here = rayon::current_thread_index().is_some();
        if here && (threads == 0 || threads == rayon::current_num_threads()) {
            return Ok(Self(None));
        }
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        Ok(Self(Some(pool.map_err(|e| cannot_start(threads, &e))?)))
    }

    /// Does `work` there.
    pub(super) fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.0 {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}

/// Threads of every parallel loop of the process, this one included; 0 is one per core. For
/// programs that are one run, once, before anything else: a caller outside the pool would hand over
/// every product and sleep until it is done.
pub(crate) fn use_everywhere(threads: usize) -> Result<()> {
    let global = ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global();
    global.map_err(|e| cannot_start(threads, &e))
}

/// Does `work`, which comes before [`use_everywhere`], on threads of its own: the first parallel
/// loop elsewhere would decide how many there are.
pub(crate) fn aside<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pool = ThreadPoolBuilder::new().build().map_err(|e| cannot_start(0, &e))?;
    pool.install(work)
}

fn cannot_start(threads: usize, e: &rayon::ThreadPoolBuildError) -> Error {
    Error::internal(format!("cannot start {threads} threads: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_aside_starts_no_threads_for_all() {
        let here = aside(|| Ok(rayon::current_thread_index().is_some())).unwrap();
        assert!(here && rayon::current_thread_index().is_none());
    }

    #[test]
    fn a_run_has_the_threads_it_asks_for_and_stays_in_a_pool_of_that_size() {
        let count = |threads: &Threads| threads.install(rayon::current_num_threads);
        assert_eq!(count(&Threads::of(3).unwrap()), 3);
        let pool = ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.install(|| {
            assert!(Threads::of(2).unwrap().0.is_none() && Threads::of(0).unwrap().0.is_none());
            assert_eq!(count(&Threads::of(1).unwrap()), 1);
        });
    }
}
