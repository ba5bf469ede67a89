//! Attempts at the Hub: transient failures are repeated, a bounded number of times, with jitter.

use super::options::HubOptions;
use crate::error::{Error, Result};
use std::time::{Duration, Instant};

/// How often a wait looks for a stop signal.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// Why an attempt failed.
pub(super) enum Failure {
    /// Another attempt would end the same way.
    Final(Error),
    /// The same, but it says nothing of the model: a copy that is cached may stand in.
    Barred(Error),
    /// Worth another attempt, after at least this long if the server said so.
    Passing(Error, Option<Duration>),
}

impl Failure {
    pub fn passing(message: impl Into<String>) -> Self {
        Self::Passing(Error::hub(message), None)
    }

    pub fn barred(message: impl Into<String>) -> Self {
        Self::Barred(Error::hub(message))
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self::Final(e)
    }
}

pub(super) type Attempt<T> = std::result::Result<T, Failure>;

/// Runs attempts until one succeeds, fails for good, or `retries` more are used up. A wait polls
/// the stop signal.
pub(super) fn retry<T>(
    options: &HubOptions,
    retries: u32,
    mut attempt: impl FnMut() -> Attempt<T>,
) -> Attempt<T> {
    for n in 0.. {
        let (error, after) = match attempt() {
            Err(Failure::Passing(error, after)) => (error, after),
            ended => return ended,
        };
        if n >= retries {
            let again = if n > 0 { format!(" ({} attempts)", n + 1) } else { String::new() };
            return Err(Failure::Passing(
                Error::new(error.kind(), format!("{error}{again}")),
                after,
            ));
        }
        pause(options, n, after)?;
    }
    unreachable!("the loop returns")
}

fn pause(options: &HubOptions, n: u32, after: Option<Duration>) -> Result<()> {
    let longest = options.backoff.saturating_mul(1 << n.min(10)).min(Duration::from_secs(10));
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos());
    let jitter = 0.5 + 0.5 * f64::from(now % 1000) / 1000.0;
    // A server that asks for more than a minute is told no by ending the attempts instead.
    let wait = after.map_or(longest.mul_f64(jitter), |a| a.min(Duration::from_secs(60)));
    let started = Instant::now();
    while let Some(left) = wait.checked_sub(started.elapsed()).filter(|l| !l.is_zero()) {
        crate::interrupt::check()?;
        std::thread::sleep(left.min(TICK));
    }
    Ok(())
}
