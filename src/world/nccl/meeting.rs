//! How processes that no MPI started find each other: process 0 hands NCCL's id out at an address that all
//! were told, and NCCL does the rest.
//!
//! `NCCL_COMM_ID` would do the same with an address in place of an id. But then NCCL listens where that
//! address leads on process 0, which by Debian's `/etc/hosts` is 127.0.1.1, wants an interface of the same
//! network everywhere, and lets two runs listen at one port.

use super::library::UniqueId;
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How long the last may come after the first.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// What one that has connected may take to speak.
const SPEAKS_WITHIN: Duration = Duration::from_secs(5);

/// Where and as whom processes meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meeting {
    host: String,
    port: u16,
    /// By which those of one run know each other.
    token: [u8; 32],
}

impl Meeting {
    /// At MASTER_ADDR, at the port after MASTER_PORT, which torchrun holds itself.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let said = |name: &str| {
            variable(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
        };
        let host = said("MASTER_ADDR").unwrap_or_else(|| "localhost".into());
        let port = said("MASTER_PORT").unwrap_or_default();
        let port: u16 = port
            .parse()
            .map_err(|_| Error::usage(format!("expected a port in MASTER_PORT, found {port:?}")))?;
        let mut hasher = Sha256::new();
        hasher.update(env!("CARGO_PKG_VERSION"));
        for name in ["WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID"] {
            hasher.update(format!("\n{name}={}", said(name).unwrap_or_default()));
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
        let port = port.checked_add(1).unwrap_or(port - 1);
        Ok(Self { host, port, token: hasher.finalize().into() })
    }

    /// The id that process 0 makes, in every process.
    pub(super) fn id(
        &self,
        (rank, size): (usize, usize),
        make: impl FnOnce() -> Result<UniqueId>,
    ) -> Result<UniqueId> {
        match rank {
            0 => make().and_then(|id| self.hand_out(id, size).map(|()| id)),
            _ => self.fetch(rank),
        }
    }

    fn hand_out(&self, id: UniqueId, size: usize) -> Result<()> {
        let taken = |e: io::Error| {
            Error::usage(format!(
                "processes meet at the port after MASTER_PORT, and {} cannot be listened at: {e}; choose another MASTER_PORT",
                self.port
            ))
        };
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, self.port))
            .or_else(|_| TcpListener::bind(("0.0.0.0", self.port)))
            .map_err(taken)?;
        listener.set_nonblocking(true).map_err(taken)?;
        let begun = Instant::now();
        let mut came = BTreeSet::new();
        while came.len() + 1 < size {
            match listener.accept() {
                // Whoever is not of this run, or does not speak, is let go.
                Ok((stream, _)) => came.extend(self.answer(stream, &id).ok().flatten()),
                Err(_) => self.pause(begun, || {
                    let missing = (1..size).filter(|rank| !came.contains(rank));
                    let missing: Vec<String> = missing.map(|rank| rank.to_string()).collect();
                    format!("processes {} of {size} have not come", missing.join(", "))
                })?,
            }
        }
        Ok(())
    }

    /// The number of the process that was answered; None where it is of another run.
    fn answer(&self, mut stream: TcpStream, id: &UniqueId) -> io::Result<Option<usize>> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(SPEAKS_WITHIN))?;
        let (mut token, mut rank) = ([0; 32], [0; 8]);
        stream.read_exact(&mut token)?;
        stream.read_exact(&mut rank)?;
        if token != self.token {
            return Ok(None);
        }
        stream.write_all(&id.0.map(|byte| byte as u8))?;
        Ok(Some(u64::from_le_bytes(rank) as usize))
    }

    fn fetch(&self, rank: usize) -> Result<UniqueId> {
        let begun = Instant::now();
        loop {
            let why = match self.ask(rank) {
                Ok(id) => return Ok(id),
                Err(e) => e,
            };
            self.pause(begun, || format!("process 0 does not answer: {why}"))?;
        }
    }

    fn ask(&self, rank: usize) -> io::Result<UniqueId> {
        let mut why = io::Error::new(io::ErrorKind::NotFound, "no such host");
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, SPEAKS_WITHIN) {
                Ok(mut stream) => {
                    stream.set_read_timeout(Some(2 * SPEAKS_WITHIN))?;
                    stream.write_all(&self.token)?;
                    stream.write_all(&(rank as u64).to_le_bytes())?;
                    let mut id = [0; 128];
                    stream.read_exact(&mut id)?;
                    return Ok(UniqueId(id.map(|byte| byte as std::ffi::c_char)));
                }
                Err(e) => why = e,
            }
        }
        Err(why)
    }

    fn pause(&self, begun: Instant, what: impl FnOnce() -> String) -> Result<()> {
        crate::interrupt::check()?;
        if begun.elapsed() > PATIENCE {
            let Self { host, port, .. } = self;
            return Err(Error::usage(format!(
                "processes meet at {host}, port {port} (MASTER_ADDR, and the port after MASTER_PORT), and {}; all must be \
                 started within ten minutes, and that port must be open between the nodes",
                what()
            )));
        }
        std::thread::sleep(PAUSE);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meeting(port: u16, more: &[(&'static str, &str)]) -> Meeting {
        let told = [("MASTER_ADDR", "localhost".to_string()), ("MASTER_PORT", port.to_string())];
        let more = more.iter().map(|(name, value)| (*name, value.to_string()));
        let all: Vec<(&str, String)> = told.into_iter().chain(more).collect();
        Meeting::of(|name| all.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone()))
            .unwrap()
    }

    /// A port that was free a moment ago, and the one after it.
    fn free_port() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port().max(2) - 1
    }

    #[test]
    fn processes_meet_beside_torchruns_own_port() {
        assert_eq!(meeting(29500, &[]).port, 29501);
        assert_eq!(meeting(65535, &[]).port, 65534);
        assert_eq!(meeting(29500, &[("MASTER_ADDR", "x")]).host, "localhost");
        let refused = Meeting::of(|_| None).unwrap_err().to_string();
        assert!(refused.contains("MASTER_PORT"), "{refused}");
        // Those of another run are not taken for one's own.
        assert_ne!(meeting(1, &[("SLURM_JOB_ID", "7")]), meeting(1, &[("SLURM_JOB_ID", "8")]));
    }

    #[test]
    fn all_have_the_id_of_process_0_and_strangers_have_not() {
        let port = free_port();
        let here = meeting(port, &[("SLURM_JOB_ID", "7")]);
        let mut made = [0; 128];
        made.iter_mut().enumerate().for_each(|(i, byte)| *byte = i as std::ffi::c_char - 64);
        let stranger = meeting(port, &[("SLURM_JOB_ID", "8")]);
        let ids = std::thread::scope(|scope| {
            // Before anybody listens.
            let of = |rank: usize| {
                let here = here.clone();
                scope.spawn(move || here.id((rank, 3), || panic!("not its to make")).unwrap().0)
            };
            let others = [of(1), of(2)];
            std::thread::sleep(2 * PAUSE);
            let first = scope.spawn(|| {
                // While process 0 listens for others still, a stranger comes.
                here.id((0, 3), || Ok(UniqueId(made))).unwrap().0
            });
            let refused = stranger.ask(1);
            assert!(refused.is_err(), "a stranger was answered");
            let mut all = vec![first.join().unwrap()];
            all.extend(others.map(|other| other.join().unwrap()));
            all
        });
        assert_eq!(ids, [made; 3]);
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let taken = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let refused = meeting(port - 1, &[]).hand_out(UniqueId([0; 128]), 2).unwrap_err();
        assert!(
            refused.to_string().contains(&format!("{port} cannot be listened at")),
            "{refused}"
        );
    }
}
