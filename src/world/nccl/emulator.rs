//! Processes that are threads, each with a GPU that is the host, talking through an NCCL of our own
//! (`emulator.cpp`), which is opened as the real one is.
//!
//! What it shows: that calls have the signatures and the order that NCCL wants, that nothing is read
//! before it has been waited for, and that nobody waits for what is not sent. What it cannot show: speed,
//! and what CUDA makes of streams and events.

use super::library::{Library, Pointer};
use super::torchrun::Torchrun;
use super::{Gpu, Memory, Nccl};
use crate::error::{Error, Result};
use crate::world::{World, in_threads};
use candle_core::Device;
use libloading::Symbol;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};

/// The NCCL of the tests, compiled at its first use; None, said aloud, where there is no C++ compiler.
fn library() -> Option<&'static (Library, libloading::Library)> {
    static OPENED: LazyLock<Option<(Library, libloading::Library)>> = LazyLock::new(|| {
        let Some(file) = compiled() else {
            eprintln!("no C++ compiler (c++ or $CXX): processes with a GPU each are not tested");
            return None;
        };
        let library = Library::open(&file).unwrap();
        // SAFETY: it was compiled from our source, without initialisers beyond its statics.
        let same = unsafe { libloading::Library::new(&file) }.unwrap();
        let _ = std::fs::remove_file(&file);
        Some((library, same))
    });
    OPENED.as_ref()
}

fn compiled() -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/world/nccl/emulator.cpp");
    let out = std::env::temp_dir().join(format!("eslm-kd-{}-nccl.so", std::process::id()));
    let named = std::env::var("CXX").ok();
    let mut compilers = named.into_iter().chain(["c++", "g++", "clang++"].map(String::from));
    let done = compilers.find_map(|compiler| {
        let mut command = Command::new(compiler);
        command.args(["-std=c++17", "-O1", "-fPIC", "-shared", "-pthread", "-Wall", "-Werror"]);
        command.arg(&source).arg("-o").arg(&out).output().ok()
    })?;
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "the C++ compiler refuses {}:\n{errors}", source.display());
    Some(out)
}

/// A GPU that is the host: the model's work is done when it is handed over, NCCL's when it is waited for.
#[derive(Debug)]
struct Host {
    stream: usize,
}

impl Host {
    fn new() -> Self {
        let (_, library) = library().expect("opened before");
        // SAFETY: it has this signature.
        let stream = unsafe {
            let new: Symbol<'_, unsafe extern "C" fn() -> Pointer> =
                library.get("eslm_stream_new").unwrap();
            new() as usize
        };
        Self { stream }
    }

    fn call(&self, name: &str) -> i32 {
        type Call = unsafe extern "C" fn(Pointer) -> i32;
        let (_, library) = library().expect("opened before");
        // SAFETY: both functions that are asked for have this signature, and the stream is live.
        unsafe {
            let function: Symbol<'_, Call> = library.get(name).unwrap();
            function(self.stream as Pointer)
        }
    }

    fn run(&self) -> Result<()> {
        match self.call("eslm_stream_run") {
            0 => Ok(()),
            code => Err(Error::internal(format!("the host's NCCL failed with {code}"))),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.call("eslm_stream_free");
    }
}

impl Gpu for Host {
    fn bind(&self) -> Result<()> {
        Ok(())
    }

    fn stream(&self) -> Pointer {
        self.stream as Pointer
    }

    fn after_model(&self) -> Result<()> {
        Ok(())
    }

    fn before_model(&self) -> Result<()> {
        self.run()
    }

    fn mark(&self) -> Result<Box<dyn Fn() -> Result<bool> + '_>> {
        self.run()?;
        Ok(Box::new(|| Ok(true)))
    }

    fn upload(&self, bytes: &[u8]) -> Result<Memory> {
        let held: Box<Vec<u8>> = Box::new(bytes.to_vec());
        Ok(Memory { address: held.as_ptr() as u64, held })
    }

    fn room(&self, bytes: usize) -> Result<Memory> {
        self.upload(&vec![0xA5; bytes])
    }

    fn download(&self, memory: &Memory) -> Result<Vec<u8>> {
        self.run()?;
        let held = memory.held.downcast_ref::<Vec<u8>>();
        Ok(held.ok_or_else(|| Error::internal("expected the host's memory"))?.clone())
    }

    fn is_of(&self, device: &Device) -> bool {
        device.is_cpu()
    }
}

/// Does `work` in `size` threads, each a process that torchrun might have started; what came of it, by
/// rank. None, said aloud, where there is no C++ compiler.
pub(crate) fn in_linked_threads<T: Send>(
    size: usize,
    work: impl Fn(World) -> T + Sync,
) -> Option<Vec<T>> {
    let (library, _) = library()?;
    let id = Nccl::new_id(library).unwrap();
    Some(std::thread::scope(|scope| {
        let one = |rank: usize| {
            let work = &work;
            scope.spawn(move || {
                let nccl = Nccl::join(library, Box::new(Host::new()), id, (rank, size)).unwrap();
                let world = World::even_alone(Torchrun::new(nccl));
                let done = work(world.clone());
                world.end(Ok(())).unwrap();
                done
            })
        };
        let threads: Vec<_> = (0..size).map(one).collect();
        threads.into_iter().map(|thread| thread.join().expect("a process of the world")).collect()
    }))
}

/// The same of processes that talk by other means, as under MPI, and of which NCCL links the GPUs alone;
/// at least two.
pub(crate) fn in_threads_beside<T: Send>(
    size: usize,
    work: impl Fn(World) -> T + Sync,
) -> Option<Vec<T>> {
    let (library, _) = library()?;
    Some(in_threads(size, |world| {
        let nccl = Nccl::beside(&world, Ok(library), || Ok(Box::new(Host::new()))).unwrap();
        let world = world.with_link(Arc::new(nccl));
        let done = work(world.clone());
        world.end(Ok(())).unwrap();
        done
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_any_length_arrive_whole() {
        let Some(all) = in_linked_threads(3, |world| {
            // Nothing, a short one, one that takes a second turn.
            let mine = vec![7 + world.rank() as u8; [0, 100, 9000][world.rank()]];
            world.agree(Ok(mine)).unwrap()
        }) else {
            return;
        };
        for heard in all {
            assert_eq!(heard, [vec![], vec![8; 100], vec![9; 9000]]);
        }
    }

    #[test]
    fn numbers_of_the_host_go_where_they_are_sent() {
        let Some(all) = in_linked_threads(3, |world| {
            // Process r sends r numbers to process 0, none to 1, and one to 2.
            let rank = world.rank();
            let send = vec![rank as f32; rank + 1];
            let (sent, received) = ([rank, 0, 1], [[0, 1, 2], [0, 0, 0], [1, 1, 1]][rank]);
            let mut into = vec![f32::NAN; received.iter().sum()];
            world.all_to_all(&send, &sent, &mut into, &received);
            into
        }) else {
            return;
        };
        assert_eq!(all, [vec![1.0, 2.0, 2.0], vec![], vec![0.0, 1.0, 2.0]]);
    }

    #[test]
    fn what_nccl_refuses_is_said_in_its_words() {
        let Some((library, _)) = library() else { return };
        assert_eq!(library.version().unwrap(), "2.31.7");
        let id = Nccl::new_id(library).unwrap();
        let refused = Nccl::join(library, Box::new(Host::new()), id, (2, 2)).unwrap_err();
        assert!(refused.to_string().contains("NCCL: invalid argument (rank 2 of 2)"), "{refused}");
        let absent = Library::open(Path::new("libnccl-that-is-not.so")).unwrap_err().to_string();
        assert!(
            absent.contains("cannot be opened") && absent.contains("LD_LIBRARY_PATH"),
            "{absent}"
        );
    }
}
