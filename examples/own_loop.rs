//! A loop of one's own over `Trainer::step`: a student learns from a teacher, and the loop decides
//! what to print and when to end.
//!
//!     cargo run --release --example own_loop

use eslm_kd::prelude::*;
use std::sync::Arc;

const VOCABULARY: u32 = 64;

fn main() -> Result<()> {
    // A "text" that a rule makes: each token follows from the two before.
    let mut ids = vec![1_u32, 2];
    for i in 2..20_000 {
        ids.push((ids[i - 1] * 5 + ids[i - 2] * 3 + 1) % (VOCABULARY - 1));
    }
    let origin =
        TokenOrigin { vocab_size: VOCABULARY, eot: VOCABULARY - 1, tokenizer_hash: [0; 32] };
    let tokens = Arc::new(TokenFile::from_tokens(&ids, origin, 1, 0)?);

    let plain =
        Plan::builder().method(Method::Clm).steps(150).context(32).sequences(8).learning_rate(5e-3);
    let teacher = train(&plain.clone().build()?, Gpt2Config::new(64, 32, 64, 2, 4), None, &tokens)?;
    println!(
        "teacher: {:.4} nats",
        evaluate(&teacher, &tokens, EvalOptions::new(32), &Silent)?.nll
    );

    let distil = plain
        .method(Method::Eslm)
        .teacher("the one above")
        .score(Score::Excess)
        .alpha(0.2)
        .build()?;
    let student = train(&distil, Gpt2Config::new(64, 32, 32, 1, 2), Some(teacher), &tokens)?;
    println!(
        "student: {:.4} nats",
        evaluate(&student, &tokens, EvalOptions::new(32), &Silent)?.nll
    );
    Ok(())
}

fn train(
    plan: &Plan,
    shape: Gpt2Config,
    teacher: Option<Gpt2>,
    tokens: &Arc<TokenFile>,
) -> Result<Gpt2> {
    check_fit(&shape, teacher.as_ref().map(|t| &t.config), plan)?;
    let plan = settle(&shape, plan);
    let student = Gpt2::scratch(shape, plan.seed, &Device::Cpu)?;
    let teacher = teacher.map(|model| Teacher::new(model, &student.config)).transpose()?;
    let loader = Loader::new(tokens.clone(), plan.data.context, plan.seed)?;
    let mut trainer = Trainer::new(plan.clone(), student, teacher)?;
    for step in 0..plan.steps {
        let cursor = step * plan.data.rows as u64;
        let report = trainer.step(step, cursor, &loader.batch(cursor, plan.data.rows)?)?;
        let loss = report.sums.loss / report.denominator;
        if step % 50 == 49 {
            println!(
                "  step {}: loss {loss:.4}, {} of {} tokens kept",
                step + 1,
                report.sums.kept,
                report.sums.tokens
            );
        }
        if loss < 0.01 {
            break;
        }
    }
    Ok(trainer.student)
}
