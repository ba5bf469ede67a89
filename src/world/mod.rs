//! The processes that train one model together: how many there are, which of them this one is, and
//! the few things that they say to each other.
//!
//! Every operation here is collective: all processes call it, in the same order. What may go wrong in
//! one process alone goes through [`World::agree`], where all of them learn of it, so that they end
//! together, each with the same error, and nobody waits for one that is gone.

mod launched;
mod link;
mod local;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(any(test, feature = "nccl"))]
mod nccl;
mod seats;
mod told;

pub use launched::{Launched, Launcher};
pub use link::{Link, Move};
pub use local::in_threads;
#[cfg(test)]
pub(crate) use nccl::{in_linked_threads, in_threads_beside};
pub use seats::{Seat, Seats};

use crate::error::{Error, Result};
use crate::json::exact;
use candle_core::Device;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Numbers that one process hands to another at once: 4 MiB. So much is held for every process, once
/// to send and once to receive.
pub const AT_ONCE: usize = 1 << 20;

/// What carries bytes and numbers between processes. All of it is collective.
pub trait Transport: Debug + Send + Sync {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;
    /// How many processes there are.
    fn size(&self) -> usize;
    /// Hands `mine`, of any length, to every process; returns those of all, by rank.
    fn all_gather(&self, mine: &[u8]) -> Vec<Vec<u8>>;
    /// Hands part r of `send` to process r. Parts lie one behind the other, `sent[r]` numbers for
    /// process r and `received[r]` numbers from it in `into`.
    fn all_to_all(&self, send: &[f32], sent: &[usize], into: &mut [f32], received: &[usize]);
    /// Waits for all, however long that takes.
    fn wait(&self);
    /// Ends all processes, whatever they wait for, with this exit status.
    fn abort(&self, status: i32) -> !;
    /// Says that no more will be said. To be called once, by all.
    fn finish(&self);
    /// What carries numbers between the processes' GPUs, if this does.
    fn link(&self) -> Option<Arc<dyn Link>> {
        None
    }
}

/// The processes of a run, seen from one of them. The default is one alone, to which every operation
/// is free. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct World(Option<Arc<Joined>>);

#[derive(Debug)]
struct Joined {
    transport: Box<dyn Transport>,
    /// Whether the last agreement was an error, which all processes then have.
    failed: AtomicBool,
    /// What carries numbers between GPUs, once that is asked for.
    link: OnceLock<Arc<dyn Link>>,
}

impl World {
    /// One process alone.
    pub const SOLO: Self = Self(None);

    /// One process alone.
    pub fn solo() -> Self {
        Self::SOLO
    }

    /// Those that `transport` reaches.
    pub fn of(transport: impl Transport + 'static) -> Self {
        if transport.size() < 2 {
            transport.finish();
            return Self::solo();
        }
        Self::even_alone(transport)
    }

    /// The same of a single process, too, which then talks to itself.
    pub(crate) fn even_alone(transport: impl Transport + 'static) -> Self {
        let link = transport.link().map_or_else(OnceLock::new, OnceLock::from);
        let failed = AtomicBool::new(false);
        Self(Some(Arc::new(Joined { transport: Box::new(transport), failed, link })))
    }

    /// The processes that a launcher started beside this one (`mpirun`, `srun`, `torchrun`), where
    /// this build can talk to them; else this one alone.
    pub fn of_process() -> Result<Self> {
        match Launched::here() {
            #[cfg(feature = "mpi")]
            Some(Launched { by: Launcher::Mpi, .. }) => mpi::Mpi::start().map(Self::of),
            #[cfg(feature = "nccl")]
            Some(by @ Launched { by: Launcher::Torchrun, size: Some(2..), .. }) => {
                nccl::Torchrun::start(&by).map(Self::of)
            }
            _ => Ok(Self::solo()),
        }
    }

    /// One process on GPU 0 that says to itself, through NCCL, what several would say to each other: to
    /// see on a machine with one GPU that this changes nothing.
    #[cfg(feature = "nccl")]
    pub fn alone_through_nccl() -> Result<Self> {
        let alone = Launched { by: Launcher::Torchrun, rank: 0, size: Some(1), local_rank: 0 };
        nccl::Torchrun::start(&alone).map(Self::even_alone)
    }

    /// The same with a link between what stands for GPUs.
    #[cfg(test)]
    fn with_link(self, link: Arc<dyn Link>) -> Self {
        let joined = self.0.as_ref().expect("several processes");
        joined.link.set(link).expect("no link yet");
        self
    }

    /// What carries numbers between GPUs, of which `device` is this process's: nothing where one of the
    /// processes has none, or where this build has no NCCL. Collective, and the same for all.
    pub fn linked(&self, device: &Device) -> Result<Option<Arc<dyn Link>>> {
        let Some(joined) = &self.0 else { return Ok(None) };
        if joined.link.get().is_none() && !cfg!(feature = "nccl") {
            return Ok(None);
        }
        let is_there = joined.link.get().is_some_and(|link| link.is_on(device));
        let mine = if device.is_cuda() || is_there { identity(device).map(Some) } else { Ok(None) };
        let mine = mine.and_then(|mine| match joined.link.get() {
            Some(_) if mine.is_some() && !is_there => Err(Error::usage(format!(
                "expected the GPU that NCCL was started with, found {:?}; under torchrun a process has the GPU of its \
                 LOCAL_RANK: choose among GPUs by CUDA_VISIBLE_DEVICES, and leave the number after cuda: away",
                device.location()
            ))),
            _ => Ok(mine),
        });
        let said = |mine: Option<Vec<u8>>| mine.map_or(Vec::new(), |id| [&[1], &id[..]].concat());
        let all = self.agree(mine.map(said))?;
        if all.iter().any(Vec::is_empty) {
            return Ok(None); // a process without a GPU
        }
        #[cfg(feature = "nccl")]
        if let Device::Cuda(cuda) = device
            && joined.link.get().is_none()
        {
            one_gpu_each(&all)?;
            // Nobody else sets it meanwhile: it is collective.
            let _ = joined.link.set(Arc::new(nccl::Nccl::of_device(self, cuda)?));
        }
        Ok(joined.link.get().cloned())
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |joined| joined.transport.rank())
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |joined| joined.transport.size())
    }

    /// Whether this is process 0, which alone writes and speaks.
    pub fn is_root(&self) -> bool {
        self.rank() == 0
    }

    /// This process's share of `n` things that all count alike, in the order of ranks.
    pub fn share(&self, n: usize) -> Range<usize> {
        let (rank, size) = (self.rank(), self.size());
        n * rank / size..n * (rank + 1) / size
    }

    /// Where each process says what it came to, all learn it, by rank; or the same error, if one of
    /// them failed: of several the first that no signal caused. It names its process, unless all
    /// failed. After that, until something else is agreed or [`World::forgive`] says that work goes on,
    /// an error is what all have.
    pub fn agree(&self, mine: Result<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        self.told(mine, false)
    }

    /// The same, where a process that fails does so `for_all`: its error names none.
    fn told(&self, mine: Result<Vec<u8>>, for_all: bool) -> Result<Vec<Vec<u8>>> {
        let Some(Joined { transport, failed, .. }) = self.0.as_deref() else {
            return mine.map(|mine| vec![mine]);
        };
        if mine.is_err() && failed.load(Ordering::Relaxed) {
            return mine.map(|mine| vec![mine]); // what follows from an error that all have
        }
        let heard = transport.all_gather(&told::written(&mine, for_all));
        let outcome = told::read(&heard);
        failed.store(outcome.is_err(), Ordering::Relaxed);
        outcome
    }

    /// The same where there is nothing to say but whether it went well.
    pub fn agree_that(&self, mine: Result<()>) -> Result<()> {
        self.agree(mine.map(|()| Vec::new())).map(drop)
    }

    /// The same of numbers, bit for bit.
    pub fn agree_on(&self, mine: Result<Vec<f64>>) -> Result<Vec<Vec<f64>>> {
        if self.size() == 1 {
            return mine.map(|mine| vec![mine]);
        }
        let bytes = |numbers: Vec<f64>| numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let numbers = |bytes: Vec<u8>| {
            let one = |word: &[u8]| f64::from_le_bytes(word.try_into().unwrap_or_default());
            bytes.chunks(8).map(one).collect()
        };
        Ok(self.agree(mine.map(bytes))?.into_iter().map(numbers).collect())
    }

    /// What process 0 makes, for all of them.
    pub fn from_root<T: Serialize + DeserializeOwned>(
        &self,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if self.size() == 1 {
            return make();
        }
        let failed =
            |e: serde_json::Error| Error::internal(format!("cannot tell other processes: {e}"));
        let mut made = None;
        let mine = match self.is_root() {
            true => make().and_then(|value| {
                let text = exact::freeze(serde_json::to_value(&value).map_err(failed)?);
                made = Some(value);
                Ok(text.to_string().into_bytes())
            }),
            false => Ok(Vec::new()),
        };
        let heard = self.told(mine, true)?;
        match made {
            Some(made) => Ok(made),
            None => serde_json::from_slice(&heard[0])
                .and_then(|value| serde_json::from_value(exact::thaw(value)))
                .map_err(failed),
        }
    }

    /// What this process came to, if the others came to something, too.
    pub fn together<T>(&self, mine: Result<T>) -> Result<T> {
        let (mine, said) = match mine {
            Ok(mine) => (Some(mine), Ok(())),
            Err(e) => (None, Err(e)),
        };
        self.agree_that(said)?;
        mine.ok_or_else(|| Error::internal("an error that nobody heard of"))
    }

    /// Errs where a process was told something else than process 0: another setting, another file. What
    /// each was told, by name; asked for only where there are several.
    pub fn same(&self, told: impl FnOnce() -> Result<Vec<(String, String)>>) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let mine = self.together(told())?;
        let first = self.from_root(|| Ok(mine.clone()))?;
        let value = |of: &[(String, String)], name: &str| {
            let found = of.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
            found.unwrap_or_else(|| "none".into())
        };
        let names = first.iter().chain(&mine).map(|(name, _)| name);
        let differs = names.into_iter().find(|name| value(&first, name) != value(&mine, name));
        self.agree_that(match differs {
            None => Ok(()),
            Some(name) => Err(Error::usage(format!(
                "{name} is {} here and {} in process 0; start all processes with the same arguments, environment and files",
                value(&mine, name),
                value(&first, name)
            ))),
        })
    }

    /// Does `work` in process 0 first and then in the others, which find what it has fetched. The error of
    /// one is that of all.
    pub fn root_first<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.is_root() {
            let done = work();
            let said = done.as_ref().map(|_| Vec::new()).map_err(Clone::clone);
            self.told(said, true)?;
            return self.together(done);
        }
        self.agree_that(Ok(()))?;
        self.together(work())
    }

    /// Does in process 0 what one process does; the others wait, and take no time from it.
    pub fn alone(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let Some(joined) = &self.0 else { return work() };
        let done = if self.is_root() { work() } else { Ok(()) };
        joined.transport.wait();
        done
    }

    /// Goes on after an error that all have.
    pub fn forgive(&self) {
        if let Some(joined) = &self.0 {
            joined.failed.store(false, Ordering::Relaxed);
        }
    }

    /// See [`Transport::all_to_all`].
    pub fn all_to_all(&self, send: &[f32], sent: &[usize], into: &mut [f32], received: &[usize]) {
        match &self.0 {
            Some(joined) => joined.transport.all_to_all(send, sent, into, received),
            None => into.copy_from_slice(send),
        }
    }

    /// What `work` came to that stands between two exchanges, where others wait for numbers and not
    /// for words: a failure ends all of them.
    pub fn or_abort<T>(&self, done: Result<T>) -> Result<T> {
        match (done, &self.0) {
            (Err(e), Some(joined)) => {
                // Nobody above will get to say it.
                eprintln!("error: process {} of {}: {e}", self.rank(), self.size());
                joined.transport.abort(e.exit_code())
            }
            (done, _) => done,
        }
    }

    /// Ends with the others: the error of one is that of all.
    pub fn end(&self, mine: Result<()>) -> Result<()> {
        let ended = self.agree_that(mine);
        if let Some(joined) = &self.0 {
            joined.link.get().inspect(|link| link.end());
            joined.transport.finish();
        }
        ended
    }
}

/// By what a GPU is told from others; nothing of what is none.
fn identity(device: &Device) -> Result<Vec<u8>> {
    #[cfg(feature = "nccl")]
    if let Device::Cuda(cuda) = device {
        return nccl::identity(cuda);
    }
    let _ = device;
    Ok(Vec::new())
}

/// Errs where two processes have the same GPU, by what all said of theirs, unless NCCL is told to bear it.
#[cfg(feature = "nccl")]
fn one_gpu_each(all: &[Vec<u8>]) -> Result<()> {
    let mut sorted: Vec<&Vec<u8>> = all.iter().collect();
    sorted.sort();
    let gpus = 1 + sorted.windows(2).filter(|two| two[0] != two[1]).count();
    if gpus == all.len() || std::env::var_os("NCCL_MULTI_RANK_GPU_ENABLE").is_some() {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{} processes have {gpus} GPUs between them, and NCCL wants one for each; start as many processes as there are GPUs, \
         or set NCCL_MULTI_RANK_GPU_ENABLE=1 (NCCL 2.30 and newer)",
        all.len()
    )))
}

/// What this build can talk to other processes through, each with its version or why it cannot.
pub fn means() -> Vec<(&'static str, Result<String>)> {
    vec![
        #[cfg(feature = "mpi")]
        ("MPI", mpi::version()),
        #[cfg(feature = "nccl")]
        ("NCCL", nccl::Nccl::version()),
    ]
}

/// Adds up `parts` as a binary tree, whatever hands which parts in: the left half is the largest power
/// of two that leaves something for the right one. None without parts.
pub fn tree<T>(parts: Vec<T>, add: &mut impl FnMut(T, T) -> T) -> Option<T> {
    // As a binary counter carries: equal trees join at once, and what is left joins from the right.
    let mut pile: Vec<(u32, T)> = Vec::new();
    for mut part in parts {
        let mut height = 0;
        while let Some((_, left)) = pile.pop_if(|(top, _)| *top == height) {
            part = add(left, part);
            height += 1;
        }
        pile.push((height, part));
    }
    pile.into_iter().map(|(_, part)| part).rev().reduce(|right, left| add(left, right))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn shares_are_consecutive_and_leave_nothing() {
        for (n, size) in [(8, 4), (7, 3), (2, 4)] {
            let shares = in_threads(size, |world| world.share(n));
            let all: Vec<usize> = shares.into_iter().flatten().collect();
            assert_eq!(all, (0..n).collect::<Vec<_>>(), "{n} of {size}");
        }
    }

    #[test]
    fn all_learn_what_each_says_and_the_error_of_one_is_that_of_all() {
        let numbers = in_threads(3, |world| {
            world.agree_on(Ok(vec![world.rank() as f64, -0.0, f64::NAN])).unwrap()
        });
        for heard in numbers {
            for (rank, of) in heard.iter().enumerate() {
                assert_eq!(of[0], rank as f64);
                assert_eq!(of[1].to_bits(), (-0.0f64).to_bits());
                assert!(of[2].is_nan());
            }
        }
        let errors = in_threads(4, |world| {
            let mine = match world.rank() {
                1 => Err(Error::new(ErrorKind::Interrupted(15), "stopped by SIGTERM")),
                2 => Err(Error::data("a bad file").going_on_with("eslm-kd doctor")),
                _ => Ok(()),
            };
            let first = world.agree_that(mine).unwrap_err();
            let error = world.end(Err(first)).unwrap_err();
            (error.to_string(), error.kind(), error.go_on().map(str::to_string))
        });
        let told = "process 2 of 4: a bad file".to_string();
        assert_eq!(errors, vec![(told, ErrorKind::Data, Some("eslm-kd doctor".into())); 4]);
    }

    #[test]
    fn a_signal_and_what_all_found_name_no_process() {
        let signal = in_threads(2, |world| {
            let mine = match world.rank() {
                1 => Err(Error::new(ErrorKind::Interrupted(2), "stopped by SIGINT")),
                _ => Ok(()),
            };
            world.agree_that(mine).unwrap_err().to_string()
        });
        assert_eq!(signal, ["stopped by SIGINT"; 2]);
        let all = in_threads(2, |world| {
            world.end(Err(Error::usage("no such file"))).unwrap_err().to_string()
        });
        assert_eq!(all, ["no such file"; 2]);
    }

    #[test]
    fn an_error_that_was_forgiven_does_not_hide_the_next() {
        let ended = in_threads(2, |world| {
            let first = world.agree_that(if world.is_root() {
                Err(Error::new(ErrorKind::NonFinite, "a NaN"))
            } else {
                Ok(())
            });
            assert!(first.is_err());
            world.forgive();
            // One goes on to the next agreement, the other fails on its way there.
            match world.rank() {
                0 => {
                    let e = world.agree_that(Ok(())).unwrap_err();
                    world.end(Err(e))
                }
                _ => world.end(Err(Error::data("a full disk"))),
            }
            .unwrap_err()
            .to_string()
        });
        assert_eq!(ended, ["process 1 of 2: a full disk"; 2]);
    }

    #[test]
    fn what_root_makes_is_made_once() {
        let made = in_threads(3, |world| {
            world
                .from_root(|| {
                    assert!(world.is_root());
                    Ok(vec![0.1, 1e300, 5.307_236_829_152_934e-7])
                })
                .unwrap()
        });
        assert_eq!(made, vec![vec![0.1, 1e300, 5.307_236_829_152_934e-7]; 3]);
        let refused = in_threads(2, |world| {
            world.from_root(|| Err::<u8, _>(Error::usage("taken"))).unwrap_err().to_string()
        });
        assert_eq!(refused, ["taken"; 2]);
        let first = in_threads(2, |world| {
            world.root_first(|| Err::<u8, _>(Error::data("gone"))).unwrap_err().to_string()
        });
        assert_eq!(first, ["gone"; 2], "only one has tried");
    }

    #[test]
    fn what_processes_were_told_otherwise_is_named() {
        let said = |of: fn(usize) -> Vec<(&'static str, &'static str)>| {
            in_threads(3, |world| {
                let told: Vec<_> = of(world.rank())
                    .into_iter()
                    .map(|(name, value)| (name.to_string(), value.to_string()))
                    .collect();
                world.same(|| Ok(told)).err().map(|e| e.to_string())
            })
        };
        assert_eq!(said(|_| vec![("seed", "1"), ("steps", "2")]), [None, None, None]);
        let other = said(|rank| vec![("steps", "2"), ("seed", if rank == 2 { "7" } else { "1" })]);
        let start = "process 2 of 3: seed is 7 here and 1 in process 0; start all";
        assert!(
            other.iter().all(|e| e.as_ref().is_some_and(|e| e.starts_with(start))),
            "{other:?}"
        );
        let more = said(|rank| if rank == 0 { vec![] } else { vec![("teacher", "t")] });
        assert!(more[0].as_ref().unwrap().contains("teacher is t here and none in process 0"));
    }

    #[test]
    fn numbers_go_where_they_belong() {
        let all = in_threads(3, |world| {
            let rank = world.rank();
            // Process r sends r + 1 numbers to each, 100 r + the receiver.
            let send: Vec<f32> =
                (0..3).flat_map(|to| vec![(100 * rank + to) as f32; rank + 1]).collect();
            let mut into = vec![0.0; 6];
            world.all_to_all(&send, &[rank + 1; 3], &mut into, &[1, 2, 3]);
            into
        });
        for (rank, into) in all.into_iter().enumerate() {
            let r = rank as f32;
            assert_eq!(into, [r, 100.0 + r, 100.0 + r, 200.0 + r, 200.0 + r, 200.0 + r]);
        }
    }

    #[test]
    fn a_tree_of_subtrees_is_the_tree() {
        let add = |a: String, b: String| format!("({a}{b})");
        let of = |from: usize, n: usize| {
            tree((from..from + n).map(|i| i.to_string()).collect(), &mut { add })
        };
        assert_eq!(of(0, 0), None);
        assert_eq!(of(0, 4).unwrap(), "((01)(23))");
        assert_eq!(of(0, 6).unwrap(), "(((01)(23))(45))");
        assert_eq!(of(0, 7).unwrap(), "(((01)(23))((45)6))");
        for (parts, each) in [(1, 8), (2, 4), (4, 2), (8, 1)] {
            let subtrees = (0..parts).map(|p| of(p * each, each).unwrap()).collect();
            assert_eq!(tree(subtrees, &mut { add }), of(0, 8), "{parts} of {each}");
        }
    }
}
