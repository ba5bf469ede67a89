//! SIGINT and SIGTERM: noted by a handler, polled by every long phase.

use crate::error::{Error, ErrorKind, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

static PENDING: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Starts noting SIGINT and SIGTERM. A second signal ends the process at once with 128 + signal; whatever was on
/// disk stays intact because every write is atomic.
pub fn install() -> Result<()> {
    let pending = PENDING.get_or_init(|| Arc::new(AtomicUsize::new(0)));
    for signal in [SIGINT, SIGTERM] {
        // Order matters: the conditional exit must see the flag as the previous signal left it.
        let failed = |e| Error::new(ErrorKind::Internal, format!("cannot install a handler for signal {signal}: {e}"));
        let armed = ARMED.get_or_init(|| Arc::new(false.into()));
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(armed)).map_err(failed)?;
        signal_hook::flag::register(signal, Arc::clone(armed)).map_err(failed)?;
        signal_hook::flag::register_usize(signal, Arc::clone(pending), signal as usize).map_err(failed)?;
    }
    Ok(())
}

static ARMED: OnceLock<Arc<std::sync::atomic::AtomicBool>> = OnceLock::new();

/// Errs with [`ErrorKind::Interrupted`] once a signal has arrived.
pub fn check() -> Result<()> {
    match PENDING.get().map_or(0, |p| p.load(Ordering::Relaxed)) {
        0 => Ok(()),
        signal => {
            let name = if signal == SIGINT as usize { "SIGINT" } else { "SIGTERM" };
            Err(Error::new(ErrorKind::Interrupted(signal as i32), format!("stopped by {name}")))
        }
    }
}
