//! A run in a folder from a program: the plan, session and loop of the command line, with one's own
//! event sink beside the `metrics.jsonl` that the command writes.
//!
//!     cargo run --release --example own_events -- DATA_DIR RUN_DIR

use eslm_kd::prelude::*;
use std::path::Path;

/// The library prints nothing: whatever a run has to say arrives here.
struct Losses;

impl EventSink for Losses {
    fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Step(e) => {
                println!("step {}: loss {:.4}, {:.0} % kept", e.step, e.loss, 100.0 * e.kept_share)
            }
            Event::Validation(e) => println!("step {}: validation loss {:.4}", e.step, e.val_loss),
            Event::CheckpointSaved { path, .. } => println!("saved {}", path.display()),
            _ => {}
        }
        Ok(())
    }
}

fn train(data: &str, out: &Path) -> Result<()> {
    let plan = Plan::builder()
        .data(data)
        .student("tiny")
        .steps(50)
        .context(128)
        .score(Score::Entropy)
        .alpha(0.3);
    let plan = plan.set("checkpoint.every", 25).build()?;
    let hub = HubOptions::from_env(false);
    let session = Session::open(&plan, Where { hub: &hub, progress: &Silent })?;
    let mut run = Run::open(session, out, false, &Silent)?;
    let metrics = Jsonl::create(&out.join("metrics.jsonl"))?;
    let summary = run.train(&mut Tee(vec![Box::new(metrics), Box::new(Losses)]))?;
    println!("{} tokens in {:.1} s", summary.tokens, summary.seconds);
    Ok(())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.as_slice() {
        [data, out] => train(data, Path::new(out)),
        _ => Err(Error::usage("usage: own_events DATA_DIR RUN_DIR")),
    };
    if let Err(e) = done {
        eprintln!("error: {e}");
        std::process::exit(e.exit_code());
    }
}
