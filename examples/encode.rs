//! Token ids of a text, for comparison with other tokenizers (`tests/reference/check_tokenizer.py`).
//!
//!     cargo run --release --example encode -- TOKENIZER_DIR TEXT_FILE IDS_FILE
//!
//! Writes little-endian u32 ids of the whole file, encoded as one text as `prepare` does and again
//! by the `tokenizers` crate alone, which must be the same. It says how fast both were, on one thread,
//! and whether the ids are the file again, which those of a tokenizer that normalizes are not.

use eslm_kd::data::encoder::Encoder;
use eslm_kd::data::tokenizer::Tokenizer;
use eslm_kd::error::{Error, Result};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [tokenizer, text, ids] = args.as_slice() else {
        eprintln!("usage: encode TOKENIZER_DIR TEXT_FILE IDS_FILE");
        return ExitCode::from(2);
    };
    match encode(Path::new(tokenizer), Path::new(text), Path::new(ids)) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(1)
        }
    }
}

fn encode(tokenizer: &Path, text: &Path, ids: &Path) -> Result<String> {
    let tokenizer = Tokenizer::load(tokenizer)?;
    let whole = std::fs::read_to_string(text).map_err(|e| Error::io("read", text, e))?;
    let rate = |started: Instant| whole.len() as f64 / 1e6 / started.elapsed().as_secs_f64();
    let encoder = Encoder::new(&tokenizer)?;
    let started = Instant::now();
    let found = encoder.encode_all(&[&whole])?.remove(0);
    let ours = rate(started);
    let started = Instant::now();
    let alone = tokenizer.encode(&whole)?;
    let theirs = rate(started);
    if alone != found {
        return Err(Error::internal("a memory of words changes the ids"));
    }
    let same = tokenizer.decode(&found)? == whole;
    let bytes: Vec<u8> = found.iter().flat_map(|id| id.to_le_bytes()).collect();
    std::fs::write(ids, bytes).map_err(|e| Error::io("write", ids, e))?;
    Ok(format!(
        "{} tokens, {} decoded; {ours:.1} MB/s, the crate alone {theirs:.1}",
        found.len(),
        if same { "the text" } else { "another text" }
    ))
}
