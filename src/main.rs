//! The `eslm-kd` command: parse, listen for signals, run, and turn an error into a message and an exit status.

use clap::Parser;
use eslm_kd::cli::{Cli, Printer};
use eslm_kd::signal;
use std::process::ExitCode;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// mimalloc's option of that name, which its bindings leave out: milliseconds before freed memory goes back to the system.
const PURGE_DELAY: i32 = 15;

fn main() -> ExitCode {
    // A step frees its activations and the next one wants them again: given back in between, their pages are cleared anew
    // each time, 6 % of a step. A phase that is over still gives its memory back.
    // SAFETY: sets an integer, before any other thread runs.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 10_000) };
    eslm_kd::guard::quiet_guarded_panics();
    let cli = Cli::parse();
    let ui = Printer::new(&cli.globals);
    match signal::install().and_then(|()| cli.verb.run(&ui)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui.error(&error);
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
        }
    }
}
