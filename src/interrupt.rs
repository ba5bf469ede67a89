//! SIGINT and SIGTERM: noted by a handler, polled by every long phase.

use crate::error::{Error, ErrorKind, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

static PENDING: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Starts noting SIGINT and SIGTERM. A second signal ends the process at once with 128 + signal;
/// whatever was on disk stays intact because every write is atomic.
pub fn install() -> Result<()> {
    let pending = PENDING.get_or_init(|| Arc::new(AtomicUsize::new(0)));
    for signal in [SIGINT, SIGTERM] {
        // Order matters: the conditional exit must see the flag as the previous signal left it.
        let failed = |e| {
            Error::new(
                ErrorKind::Internal,
                format!("cannot install a handler for signal {signal}: {e}"),
            )
        };
        let armed = ARMED.get_or_init(|| Arc::new(false.into()));
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(armed))
            .map_err(failed)?;
        signal_hook::flag::register(signal, Arc::clone(armed)).map_err(failed)?;
        signal_hook::flag::register_usize(signal, Arc::clone(pending), signal as usize)
            .map_err(failed)?;
    }
    Ok(())
}

static ARMED: OnceLock<Arc<std::sync::atomic::AtomicBool>> = OnceLock::new();

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
    match PENDING.get().map_or(0, |p| p.load(Ordering::Relaxed)) {
        0 => Ok(()),
        signal => {
            let name = if signal == SIGINT as usize { "SIGINT" } else { "SIGTERM" };
            Err(Error::new(ErrorKind::Interrupted(signal as i32), format!("stopped by {name}")))
        }
    }
}
