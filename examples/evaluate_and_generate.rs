//! A stored model (run folder, Hugging Face folder, preset or Hub id) on a text of yours, and a
//! continuation of it.
//!
//!     cargo run --release --example evaluate_and_generate -- MODEL TEXT_FILE

use eslm_kd::prelude::*;
use std::io::Write;
use std::path::Path;

fn run(name: &str, text: &Path) -> Result<()> {
    let hub = HubOptions::from_env(false);
    let opened = open_model(name, Kind::Any, &Device::Cpu, Where { hub: &hub, progress: &Silent })?;
    println!("{}: {} parameters", opened.folder.origin, opened.model.config.parameters());

    let tokens = open_tokens(text, &opened, &Silent)?;
    let context = opened.model.config.n_positions;
    let options = EvalOptions { stride: context / 2, ..EvalOptions::new(context) };
    let found = evaluate(&opened.model, &tokens, options, &Silent)?;
    println!("perplexity {:.2} over {} tokens", found.perplexity, found.tokens);

    let prompt = std::fs::read_to_string(text).map_err(|e| Error::io("read", text, e))?;
    let options = GenerateOptions {
        temperature: 0.8,
        top_k: Some(50),
        top_p: None,
        seed: 42,
        max_tokens: 60,
    };
    let written =
        generate(&opened.model, opened.tokenizer()?, prompt.trim_end(), &options, |piece| {
            print!("{piece}");
            std::io::stdout().flush().map_err(|e| Error::io("write", Path::new("stdout"), e))
        })?;
    println!("\n({} tokens, ended by {:?})", written.tokens, written.stop);
    Ok(())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.as_slice() {
        [model, text] => run(model, Path::new(text)),
        _ => Err(Error::usage("usage: evaluate_and_generate MODEL TEXT_FILE")),
    };
    if let Err(e) = done {
        eprintln!("error: {e}");
        std::process::exit(e.exit_code());
    }
}
