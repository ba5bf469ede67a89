//! A run from a program: the plan, session and loop of the command line, with events in place of a progress bar.
//!
//!     cargo run --release --example library -- DATA_DIR RUN_DIR

use eslm_kd::config::{self, Overrides};
use eslm_kd::progress::Silent;
use eslm_kd::store::Where;
use eslm_kd::store::hub::HubOptions;
use eslm_kd::train::events::{Event, EventSink};
use eslm_kd::train::run::Run;
use eslm_kd::train::session::Session;
use eslm_kd::{Error, Result};
use std::path::Path;

/// The library prints nothing: whatever a run has to say arrives here.
struct Losses;

impl EventSink for Losses {
    fn event(&mut self, event: &Event) -> Result<()> {
        if let Event::Step(e) = event {
            let full = e.full_loss.map_or_else(|| "unknown".into(), |loss| format!("{loss:.4}"));
            println!("step {}: full-token loss {full}, {:.0} % kept", e.step, 100.0 * e.kept_share);
        }
        Ok(())
    }
}

fn train(data: &str, out: &str) -> Result<()> {
    let mut wanted = Overrides::default();
    wanted.set(&format!("data.dir={data}"))?;
    for setting in ["student=tiny", "steps=50", "data.context=128", "select.score=entropy", "select.alpha=0.3"] {
        wanted.set(setting)?;
    }
    let plan = config::load(None, &wanted)?.plan;
    let session = Session::open(&plan, Where { hub: &HubOptions::from_env(false)?, progress: &Silent })?;
    let summary = Run::open(session, Path::new(out), false, &Silent)?.train(&mut Losses)?;
    if let Some(loss) = summary.val_loss {
        println!("validation loss {loss:.4} after {} tokens", summary.tokens);
    }
    Ok(())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.as_slice() {
        [data, out] => train(data, out),
        _ => Err(Error::usage("usage: library DATA_DIR RUN_DIR")),
    };
    if let Err(e) = done {
        eprintln!("error: {e}");
        std::process::exit(e.exit_code());
    }
}
