//! A score of one's own: `Trainer::score_with` ranks the tokens by a function in place of the
//! plan's `select.score`. Here the tokens that are neither known nor hopeless are kept: those whose
//! loss is closest to one nat.
//!
//!     cargo run --release --example own_score

use eslm_kd::prelude::*;
use std::sync::Arc;

fn main() -> Result<()> {
    // A "text" of which every third token is noise, which no model can learn.
    let noise = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) % 63;
    let ids: Vec<u32> =
        (0..20_000).map(|i| if i % 3 == 2 { noise(i) as u32 } else { (i % 63) as u32 }).collect();
    let origin = TokenOrigin { vocab_size: 64, eot: 63, tokenizer_hash: [0; 32] };
    let tokens = Arc::new(TokenFile::from_tokens(&ids, origin, 1, 0)?);

    let plan = Plan::builder()
        .steps(100)
        .context(32)
        .sequences(8)
        .alpha(0.3)
        .learning_rate(5e-3)
        .build()?;
    let shape = Gpt2Config::new(64, 32, 32, 1, 2);
    let plan = settle(&shape, &plan);
    let student = Gpt2::scratch(shape, plan.seed, &Device::Cpu)?;
    let loader = Loader::new(tokens.clone(), plan.data.context, plan.seed)?;
    let mut trainer = Trainer::new(plan.clone(), student, None)?;

    // Once per micro-batch: the statistics of its positions in order, and a score for each; the
    // largest are kept.
    trainer.score_with(|positions: &[RowStats]| {
        positions.iter().map(|p| -(p.student.nll - 1.0).abs()).collect()
    });

    for step in 0..plan.steps {
        let cursor = step * plan.data.rows as u64;
        let sums = trainer.step(step, cursor, &loader.batch(cursor, plan.data.rows)?)?.sums;
        if step % 20 == 19 {
            let (kept, all) = (sums.kept_nll / sums.kept as f64, sums.nll / sums.valid as f64);
            println!("step {}: {kept:.3} nats per kept token, {all:.3} per token", step + 1);
        }
    }
    let found = evaluate(&trainer.student, &tokens, EvalOptions::new(32), &Silent)?;
    println!("{:.4} nats per token", found.nll);
    Ok(())
}
