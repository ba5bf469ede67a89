//! The `eslm-kd` command: parse, listen for signals, run, and turn an error into a message and an
//! exit status.

use eslm_kd::cli::{Cli, Printer};
use eslm_kd::error::Result;
use eslm_kd::world::World;
use eslm_kd::{allocator, guard, interrupt};
use std::process::ExitCode;

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    guard::quiet_guarded_panics();
    let cli = Cli::of_process();
    // First: a launcher passes signals on as soon as it has started a process.
    let listening = interrupt::install();
    let (world, joined) = match World::of_process() {
        Ok(world) => (world, Ok(())),
        Err(e) => (World::solo(), Err(e)),
    };
    let globals = cli.as_ref().map(|cli| cli.globals.clone()).unwrap_or_default();
    let ui = Printer::new(&globals, world.clone());
    let done: Result<()> = listening.and(joined).and(cli).and_then(|cli| cli.verb.run(&ui));
    match world.end(done) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui.error(&error);
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
        }
    }
}
