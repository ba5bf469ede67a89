//! Signals: noted by a handler, polled by every long phase.
//!
//! | signal | what it asks for | exit status |
//! |---|---|---|
//! | SIGINT, SIGTERM | save and stop; a second one stops at once | 130, 143 |
//! | SIGHUP (a terminal closes), SIGUSR2 (schedulers, before the time is up) | save and stop | 129, 140 |
//! | SIGUSR1 (`sbatch --signal=USR1@90`) | save and go on | |
//!
//! Only where a run trains is there something to save; other work stops, or goes on. A SIGHUP or SIGUSR that is
//! ignored when the program starts, as under `nohup`, stays ignored.

use crate::error::{Error, ErrorKind, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

/// The signal that asked to stop; 0 is none.
static PENDING: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);
/// Whether the next SIGINT or SIGTERM ends the process.
static ARMED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// Whether the state is to be saved before work goes on.
static SAVE: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Starts noting signals. A second SIGINT or SIGTERM ends the process at once with 128 + signal;
/// whatever was on disk stays intact because every write is atomic. The others never do: a closing
/// terminal sends SIGHUP more than once, and a scheduler SIGTERM after SIGUSR2.
pub fn install() -> Result<()> {
    let failed = |signal: i32| {
        move |e: std::io::Error| {
            let text = format!("cannot install a handler for signal {signal}: {e}");
            Error::new(ErrorKind::Internal, text)
        }
    };
    for signal in [SIGINT, SIGTERM] {
        // Order matters: the conditional exit must see the flag as the previous signal left it.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&ARMED))
            .and_then(|_| flag::register(signal, Arc::clone(&ARMED)))
            .and_then(|_| flag::register_usize(signal, Arc::clone(&PENDING), signal as usize))
            .map_err(failed(signal))?;
    }
    #[cfg(unix)]
    {
        use signal_hook::consts::{SIGHUP, SIGUSR1, SIGUSR2};
        for signal in [SIGHUP, SIGUSR2].into_iter().filter(|s| !is_ignored(*s)) {
            flag::register_usize(signal, Arc::clone(&PENDING), signal as usize)
                .map_err(failed(signal))?;
        }
        if !is_ignored(SIGUSR1) {
            flag::register(SIGUSR1, Arc::clone(&SAVE)).map_err(failed(SIGUSR1))?;
        }
    }
    Ok(())
}

/// Whether the process was started with `signal` ignored.
#[cfg(unix)]
#[allow(unsafe_code)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: without a new action sigaction only writes the present one, into a value of its type
    // for which all zeros are valid.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut now) == 0
            && now.sa_sigaction == libc::SIG_IGN
    }
}

/// Whether SIGUSR1 has asked for the state to be saved since the last call.
pub fn save_is_asked() -> bool {
    SAVE.swap(false, Ordering::Relaxed)
}

static HELD: AtomicUsize = AtomicUsize::new(0);

/// While it lives, [`check`] reports no signal, in any thread; the signal is kept for later.
#[derive(Debug)]
#[must_use = "the hold ends when this is dropped"]
pub struct Hold(());

/// Begins a piece of work that a first signal must not cut short: saving, which the signal itself
/// asks for.
pub fn hold() -> Hold {
    HELD.fetch_add(1, Ordering::Relaxed);
    Hold(())
}

impl Drop for Hold {
    fn drop(&mut self) {
        HELD.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Errs with [`ErrorKind::Interrupted`] once a signal has arrived, unless a [`Hold`] is alive.
pub fn check() -> Result<()> {
    if HELD.load(Ordering::Relaxed) > 0 {
        return Ok(());
    }
    match PENDING.load(Ordering::Relaxed) {
        0 => Ok(()),
        signal => {
            let signal = signal as i32;
            Err(Error::new(ErrorKind::Interrupted(signal), stopped_by(signal)))
        }
    }
}

/// `stopped by SIGINT`.
pub fn stopped_by(signal: i32) -> String {
    let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
    format!("stopped by {name}")
}
