//! Token ids of a text, for comparison with other tokenizers (`tests/reference/check_tokenizer.py
//! --compare`).
//!
//!     cargo run --release --example encode -- TOKENIZER_DIR TEXT_FILE IDS_FILE
//!
//! Writes little-endian u32 ids of the whole file, encoded as one text, and the file decoded again
//! must be the same.

use eslm_kd::data::tokenizer::Tokenizer;
use eslm_kd::error::{Error, Result};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [tokenizer, text, ids] = args.as_slice() else {
        eprintln!("usage: encode TOKENIZER_DIR TEXT_FILE IDS_FILE");
        return ExitCode::from(2);
    };
    match encode(Path::new(tokenizer), Path::new(text), Path::new(ids)) {
        Ok(count) => {
            println!("{count} tokens");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(1)
        }
    }
}

fn encode(tokenizer: &Path, text: &Path, ids: &Path) -> Result<usize> {
    let tokenizer = Tokenizer::load(tokenizer)?;
    let whole = std::fs::read_to_string(text).map_err(|e| Error::io("read", text, e))?;
    let found = tokenizer.encode(&whole)?;
    if tokenizer.decode(&found)? != whole {
        return Err(Error::data("decoding the ids does not give the text back"));
    }
    let bytes: Vec<u8> = found.iter().flat_map(|id| id.to_le_bytes()).collect();
    std::fs::write(ids, bytes).map_err(|e| Error::io("write", ids, e))?;
    Ok(found.len())
}
