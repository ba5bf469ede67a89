//! How much variance drawing from the teacher adds to the gradient of a mini-batch, beside the
//! mini-batch's own.
//!
//! `cargo bench --bench noise -- RUN DATA TEACHER [SEEDS] [BATCHES]`: RUN is a run of
//! `distill`, at whose student the gradients are taken, on batches of its size. Every gradient is the
//! first moment of a fresh AdamW after one step without clipping, over 1 - beta1.

use eslm_kd::config::{self, Overrides, Plan, RunFile};
use eslm_kd::data::loader::Loader;
use eslm_kd::progress::Silent;
use eslm_kd::store::Where;
use eslm_kd::store::hub::HubOptions;
use eslm_kd::train::Trainer;
use eslm_kd::train::session::Session;
use std::path::Path;

/// The gradient of batch `number` in one piece.
fn gradient(plan: &Plan, number: u64) -> Vec<f32> {
    let hub = HubOptions::from_env(true);
    let at = Where { hub: &hub, progress: &Silent };
    let session = Session::open(plan, at).expect("a run of distill");
    let plan = session.plan.clone();
    let loader = Loader::new(session.train, plan.data.context, 1).expect("tokens");
    let batch = loader.batch(number * plan.data.rows as u64, plan.data.rows).expect("a batch");
    let mut trainer = Trainer::new(plan, session.student, session.teacher).expect("a trainer");
    trainer.step(0, 0, &batch).expect("a step");
    let whole = 1.0 / (1.0 - trainer.plan.optim.beta1 as f32);
    let of = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    trainer.state.m.tensors().iter().flat_map(of).map(|m| m * whole).collect()
}

fn squared(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum()
}

fn mean(all: &[Vec<f32>]) -> Vec<f64> {
    let mut mean = vec![0.0; all[0].len()];
    for one in all {
        mean.iter_mut().zip(one).for_each(|(m, x)| *m += f64::from(*x) / all.len() as f64);
    }
    mean
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [run, data, teacher, more @ ..] = words.as_slice() else {
        println!("noise: cargo bench --bench noise -- RUN DATA TEACHER [SEEDS] [BATCHES]");
        return;
    };
    let number = |i: usize, or: u64| more.get(i).map_or(or, |n| n.parse().expect("a number"));
    let (seeds, batches) = (number(0, 16), number(1, 16));
    let plan = |signal: &str, seed: u64| {
        let file = RunFile::find(run).expect("a run folder");
        let mut set = Overrides::default();
        for assignment in [
            format!("student=\"{}\"", Path::new(run).join("model").display()),
            format!("teacher=\"{teacher}\""),
            format!("data.dir=\"{data}\""),
            format!("seed={seed}"),
            "init=checkpoint".into(),
            "method=clm".into(),
            "optim.clip=0".into(),
        ] {
            set.set(&assignment).expect("a key");
        }
        let mut plan = config::load(Some(&file), &set).expect("a plan").plan;
        plan.shape = config::ShapePlan::default();
        plan.data.signal = None;
        match signal.split_once('=') {
            Some((_, draws)) => {
                plan.objective.signal = config::Signal::Sampled;
                plan.objective.samples = draws.parse().expect("a number");
            }
            None => plan.objective.signal = config::Signal::Dense,
        }
        plan
    };
    let dense: Vec<Vec<f32>> = (0..batches).map(|b| gradient(&plan("dense", 1), b)).collect();
    let center = mean(&dense);
    let own = dense.iter().map(|g| squared(g, &center)).sum::<f64>() / (batches - 1) as f64;
    let first: Vec<f64> = dense[0].iter().map(|g| f64::from(*g)).collect();
    let size: f64 = center.iter().map(|c| c * c).sum();
    println!(
        "a mini-batch's own variance {own:.4e} over {batches} batches; the mean's square {size:.4e}"
    );
    for draws in [8, 16, 50, 200] {
        let signal = format!("sampled={draws}");
        let drawn: Vec<Vec<f32>> =
            (1..=seeds).map(|seed| gradient(&plan(&signal, seed), 0)).collect();
        let added = drawn.iter().map(|g| squared(g, &first)).sum::<f64>() / seeds as f64;
        let away = mean(&drawn).iter().zip(&first).map(|(m, d)| (m - d).powi(2)).sum::<f64>();
        // Without bias the mean of n draws lies as far away as n-th of their variance says.
        println!(
            "{draws:>4} draws: added variance {added:.4e}, {:.2} % of the mini-batch's own; the mean of {seeds} lies \
             {:.2} of what chance allows from the dense gradient",
            100.0 * added / own,
            away / (added / seeds as f64)
        );
    }
}
