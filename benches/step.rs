//! One whole training step, by phase: plain, with selection, and distilling. Prints a table.
//!
//! `cargo bench --bench step -- [SHAPE] [RUNS] [DTYPE]`, with SHAPE one of `124m` (B 4 x T 256) and `14m` (B 8 x T 256, V 8192),
//! and DTYPE one of `f32` and `bf16`.

use candle_core::Device;
use eslm_kd::config::{self, BackwardMode, Dtype, HeadMode, Method, MicroRows, Overrides, Plan, Rho, RunFile, Score};
use eslm_kd::data::loader::Batch;
use eslm_kd::model::{Gpt2, Gpt2Config};
use eslm_kd::rng::{Rng, Stream};
use eslm_kd::teacher::Teacher;
use eslm_kd::train::Trainer;
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let shape = args.first().map_or("14m", String::as_str);
    let runs: usize = args.get(1).and_then(|r| r.parse().ok()).unwrap_or(5);
    let dtype = args.get(2).map_or(Dtype::F32, |d| d.parse().unwrap());
    let (student, teacher, rows) = match shape {
        "124m" => (Gpt2Config::new(50257, 1024, 768, 12, 12), Gpt2Config::new(50257, 1024, 1024, 24, 16), 4),
        _ => (Gpt2Config::new(8192, 256, 384, 6, 6), Gpt2Config::new(8192, 256, 512, 8, 8), 8),
    };
    println!("{shape}: {} parameters, {rows} x 256 tokens, {runs} runs after one, {dtype}", student.parameters());
    println!("{:<28} {:>8} {:>8} {:>6}  phases (s)", "step", "median s", "tok/s", "ratio");
    let mut plain = None;
    use BackwardMode::{Exact, Sampled, Sparse};
    for (name, alpha, score, lambda, backward) in [
        ("plain", 0.0, Score::Loss, 0.0, Exact),
        ("entropy, keep 0.9", 0.1, Score::Entropy, 0.0, Exact),
        ("entropy, keep 0.5", 0.5, Score::Entropy, 0.0, Exact),
        ("entropy, keep 0.2", 0.8, Score::Entropy, 0.0, Exact),
        ("keep 0.9, sparse", 0.1, Score::Entropy, 0.0, Sparse),
        ("keep 0.5, sparse", 0.5, Score::Entropy, 0.0, Sparse),
        ("keep 0.2, sparse", 0.8, Score::Entropy, 0.0, Sparse),
        ("plain, sampled at rho 0.5", 0.0, Score::Loss, 0.0, Sampled),
        ("keep 0.5, sampled, rho 0.5", 0.5, Score::Entropy, 0.0, Sampled),
        ("dense KD", 0.0, Score::Loss, 0.5, Exact),
        ("ESLM-KD, entropy, keep 0.2", 0.8, Score::Entropy, 0.5, Exact),
        ("ESLM-KD, kl, keep 0.2", 0.8, Score::Kl, 0.5, Exact),
    ] {
        let mut plan = base_plan();
        plan.method = Method::Eslm;
        plan.data.rows = rows;
        plan.data.context = 256;
        (plan.select.alpha, plan.select.score, plan.objective.lambda) = (alpha, score, lambda);
        (plan.select.burn_in, plan.select.ramp) = (0, 0);
        plan.machine.dtype = dtype;
        plan.machine.micro_rows = MicroRows::Rows(rows);
        (plan.machine.head, plan.machine.backward, plan.machine.rho) = (HeadMode::Keep, backward, Rho::Share(0.5));
        let device = Device::Cpu;
        let model = Gpt2::scratch(student.clone(), 1, &device).unwrap();
        let teacher = (lambda > 0.0)
            .then(|| Teacher::new(Gpt2::scratch(teacher.clone(), 2, &device).unwrap(), &student).unwrap());
        let mut trainer = Trainer::new(plan, model, teacher).unwrap();
        let batch = random_batch(rows, 256, student.vocab_size);
        let mut times = Vec::new();
        let mut phases = String::new();
        for run in 0..=runs {
            let start = Instant::now();
            let report = trainer.step(run as u64, 0, &batch).unwrap();
            if run > 0 {
                times.push(start.elapsed().as_secs_f64());
            }
            let p = report.phases;
            phases = format!(
                "fwd {:.3} scan {:.3} teacher {:.3} select {:.4} head {:.3} bwd {:.3} opt {:.3} | {:.2} GFLOP",
                p.forward,
                p.scan,
                p.teacher,
                p.select,
                p.head,
                p.backward,
                p.optimizer,
                report.flops.total() / 1e9
            );
        }
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let plain = *plain.get_or_insert(median);
        println!("{name:<28} {median:>8.3} {:>8.0} {:>6.3}  {phases}", (rows * 256) as f64 / median, median / plain);
    }
}

fn base_plan() -> Plan {
    config::load(Some(&RunFile::embedded("quickstart").unwrap()), &Overrides::default()).unwrap().plan
}

fn random_batch(rows: usize, context: usize, vocab: usize) -> Batch {
    let rng = Rng::new(5, Stream::Corpus);
    let draw = |sub| (0..rows * context).map(|i| rng.below(sub, i as u64, vocab as u64) as u32).collect();
    Batch {
        rows,
        context,
        inputs: draw(0),
        targets: draw(1),
        valid: vec![true; rows * context],
        sequence_ids: (0..rows as u64).collect(),
    }
}
