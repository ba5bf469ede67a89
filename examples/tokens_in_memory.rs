//! Text to tokens to batches, all in memory: a tokenizer is learnt from a file, a text becomes a
//! `TokenFile`, a loader shuffles it.
//!
//!     cargo run --release --example tokens_in_memory -- TEXT_FILE

use eslm_kd::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;

fn main() -> Result<()> {
    let Some(path) = std::env::args().nth(1).map(PathBuf::from) else {
        return Err(Error::usage("usage: tokens_in_memory TEXT_FILE"));
    };
    let options = TrainOptions { vocab_size: 1024, ..TrainOptions::default() };
    let (tokenizer, learnt) = Tokenizer::train(std::slice::from_ref(&path), &options, &Silent)?;
    println!("{} tokens learnt from {} bytes", learnt.vocab_size, learnt.bytes);

    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let mut ids = tokenizer.encode(&text)?;
    ids.push(tokenizer.eot());
    let tokens = Arc::new(TokenFile::from_tokens(&ids, tokenizer.origin(), 1, text.len() as u64)?);

    let context = 64.min(ids.len() - 1);
    let loader = Loader::new(tokens, context, 42)?;
    println!("{} sequences of {context} tokens in an epoch", loader.sequences_per_epoch());
    let batch = loader.batch(0, 2)?;
    for row in batch.inputs.chunks(context) {
        println!("---\n{}", tokenizer.decode(row)?);
    }
    Ok(())
}
