//! Processes that are threads of one: for tests of what several do, and for programs that have no
//! launcher.

use super::{Transport, World};
use std::fmt;
use std::sync::{Arc, Barrier, Mutex, PoisonError};

/// Does `work` in `size` threads, each a process of one world; returns what came of it, by rank.
///
/// # Panics
/// Where one of them does.
pub fn in_threads<T: Send>(size: usize, work: impl Fn(World) -> T + Sync) -> Vec<T> {
    let board = Arc::new(Board {
        arrived: Barrier::new(size),
        bytes: Mutex::new(vec![Vec::new(); size]),
        numbers: Mutex::new(vec![(Vec::new(), Vec::new()); size]),
    });
    std::thread::scope(|scope| {
        let one = |rank: usize| {
            let (board, work) = (Arc::clone(&board), &work);
            scope.spawn(move || work(World::of(Thread { rank, size, board })))
        };
        let threads: Vec<_> = (0..size).map(one).collect();
        threads.into_iter().map(|thread| thread.join().expect("a process of the world")).collect()
    })
}

/// Where each lays what it hands over, and all look between two meetings.
struct Board {
    arrived: Barrier,
    bytes: Mutex<Vec<Vec<u8>>>,
    /// Numbers, and how many of them are for whom.
    numbers: Mutex<Vec<(Vec<f32>, Vec<usize>)>>,
}

struct Thread {
    rank: usize,
    size: usize,
    board: Arc<Board>,
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Thread {} of {}", self.rank, self.size)
    }
}

impl Thread {
    /// Lays down, waits for all, looks, and waits until all have looked.
    fn meet<S, T>(&self, on: &Mutex<S>, lay: impl FnOnce(&mut S), look: impl FnOnce(&S) -> T) -> T {
        lay(&mut on.lock().unwrap_or_else(PoisonError::into_inner));
        self.board.arrived.wait();
        let seen = look(&on.lock().unwrap_or_else(PoisonError::into_inner));
        self.board.arrived.wait();
        seen
    }
}

impl Transport for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_gather(&self, mine: &[u8]) -> Vec<Vec<u8>> {
        self.meet(&self.board.bytes, |all| all[self.rank] = mine.to_vec(), Clone::clone)
    }

    fn all_to_all(&self, send: &[f32], sent: &[usize], into: &mut [f32], received: &[usize]) {
        self.meet(
            &self.board.numbers,
            |all| all[self.rank] = (send.to_vec(), sent.to_vec()),
            |all| {
                let mut at = 0;
                for ((numbers, counts), expected) in all.iter().zip(received) {
                    let from: usize = counts[..self.rank].iter().sum();
                    assert_eq!(counts[self.rank], *expected, "both sides count alike");
                    into[at..at + expected].copy_from_slice(&numbers[from..from + expected]);
                    at += expected;
                }
                assert_eq!(at, into.len(), "what comes fills the place for it");
            },
        );
    }

    fn wait(&self) {
        self.board.arrived.wait();
    }

    fn abort(&self, status: i32) -> ! {
        panic!("process {} ends all with status {status}", self.rank)
    }

    fn finish(&self) {}
}
