//! Every choice of a step with every other one, pair by pair, against one slow step in plain tensor
//! operations ([`reference`]): what is reported, what is kept, and the parameters after AdamW.
//!
//! What a sampled backward draws below the head is left to the law that the mean over draws is the
//! gradient (`sampled.rs`); here its rows at the head are drawn again, one by one.

mod heard;
pub(crate) mod net;
mod reference;

use crate::laws::{CONTEXT, ROWS, batch, model, plan, step, trainer, trainer_of};
use crate::support::tiny;
use candle_core::Device;
use eslm_kd::config::{self, AlphaSchedule, Overrides, Plan};
use eslm_kd::cost::{Route, StepFacts, Work, flops, head_backward, trunk_backward_sampled};
use eslm_kd::data::loader::Batch;
use eslm_kd::model::{Gpt2, Gpt2Config};
use eslm_kd::ops::buffer::with_mut;
use eslm_kd::rng::{Rng, Stream};
use eslm_kd::train::{StepReport, Trainer};
use net::{Net, numbers};
use rayon::prelude::*;
use reference::{Expected, SelectionState, TIE};
use std::collections::BTreeSet;

/// Sequences that the run has consumed before: numbers of tokens do not begin at 0.
const CONSUMED: u64 = 37;
const STEPS: u64 = 3;
/// Random crossings beyond those that cover every pair.
const MORE: usize = 180;

/// The choices, each with the settings that make it.
const FACTORS: [&[&[&str]]; 18] = [
    &[
        &["select.score=entropy"],
        &["select.score=loss"],
        &["select.score=kl"],
        &["select.score=reverse-kl"],
        &["select.score=entropy-kl"],
        &["select.score=teacher-entropy"],
        &["select.score=excess"],
        &["select.score=random"],
    ],
    &[
        &["select.pool=sequence"],
        &["select.pool=micro-batch"],
        &["select.pool=carried", "select.threshold_ema=0.6"],
        &["select.pool=step"],
    ],
    &[&["select.tail=high"], &["select.tail=low"]],
    &[
        &["select.alpha=0.5"],
        &["select.alpha=0.1"],
        &["select.alpha=0.8"],
        &["select.alpha=0"],
        &["method=clm"],
    ],
    &[
        &["select.cvar_weight=1"],
        &["select.cvar_weight=0.6", "select.rest_rate=0.4"],
        &["select.cvar_weight=0", "select.rest_rate=0.7"],
    ],
    &[
        &["objective.divergence=forward-kl"],
        &["objective.divergence=reverse-kl"],
        &["objective.divergence=jsd", "objective.beta=0.3"],
        &["objective.divergence=skew-kl", "objective.skew=0.2"],
        &["objective.divergence=skew-reverse-kl", "objective.skew=0.3"],
        &["objective.divergence=tv"],
    ],
    &[
        &["objective.signal=dense"],
        &["objective.signal=top-k", "objective.top_k=9"],
        &["objective.signal=sampled", "objective.samples=5"],
    ],
    &[
        &["objective.lambda=0.5"],
        &["objective.lambda=0"],
        &["objective.lambda=1"],
        &["objective.lambda=0.7", "objective.lambda_end=0"],
        &["objective.lambda=0", "objective.lambda_end=0.6", "objective.schedule=cosine"],
    ],
    &[
        &["objective.temperature=1"],
        &["objective.temperature=2"],
        &["objective.temperature=2", "objective.temperature_end=0.8"],
    ],
    &[
        &["machine.backward=exact"],
        &["machine.backward=dense"],
        &["machine.backward=sparse"],
        &["machine.backward=sampled", "machine.rho=1"],
        &["machine.backward=sampled", "machine.rho=0.4"],
    ],
    &[&["machine.head=keep"], &["machine.head=recompute"]],
    &[&["machine.micro_rows=4"], &["machine.micro_rows=2"], &["machine.micro_rows=1"]],
    &[
        &["select.alpha_seq=0"],
        &["select.alpha_seq=0.5", "select.probe_score=entropy", "select.probe_stride=4"],
        &[
            "select.alpha_seq=0.4",
            "select.probe_score=loss",
            "select.probe_stride=5",
            "select.exit_layer=2",
        ],
        &["select.alpha_seq=0.7", "select.probe_score=random", "select.probe_stride=3"],
    ],
    &[
        &["select.schedule=fixed"],
        &["select.schedule=fixed", "select.burn_in=1", "select.ramp=2"],
        &[
            "select.schedule=ada-eslm",
            "select.interval=1",
            "select.gamma=4",
            "select.alpha_min=0.05",
        ],
        &["select.schedule=easy-share", "select.interval=1"],
    ],
    &[&[], &["teacher=t"]],
    // Whether positions that do not count are among the batch.
    &[&[], &[]],
    &[
        &["optim.clip=0"],
        &["optim.clip=0.2", "optim.beta1=0.7", "optim.beta2=0.9", "optim.weight_decay=0.4"],
    ],
    &[
        &["machine.activations=keep", "seed=3"],
        &["machine.activations=recompute", "seed=30064771077"],
    ],
];
const SCORE: usize = 0;
const POOL: usize = 1;
const ALPHA: usize = 3;
const MIX: usize = 4;
const DIVERGENCE: usize = 5;
const SIGNAL: usize = 6;
const LAMBDA: usize = 7;
const PHASE_ONE: usize = 12;
const SCHEDULE: usize = 13;
const TEACHER: usize = 14;
const INVALID: usize = 15;

type Crossing = [usize; FACTORS.len()];

/// Two choices that no run can have together, whatever the others are: see `check` in
/// src/config/load.rs.
fn contradict(a: (usize, usize), b: (usize, usize)) -> bool {
    let one = |x: (usize, usize), y: (usize, usize)| match (x, y) {
        ((SCORE, 4), (POOL, 2 | 3)) => true,
        ((MIX, 1..), (PHASE_ONE, 1..)) => true,
        ((SIGNAL, 2), (DIVERGENCE, 1..)) => true,
        // A sample of the teacher knows nothing of KL(p || q).
        ((SIGNAL, 2), (SCORE, 3)) => true,
        ((TEACHER, 0), (SCORE, 2..=6)) => true,
        ((TEACHER, 0), (LAMBDA, value)) => value != 1,
        // Ada-ESLM has no alpha of 0.
        ((SCHEDULE, 2), (ALPHA, 3)) => true,
        _ => false,
    };
    one(a, b) || one(b, a)
}

fn possible(crossing: &Crossing) -> bool {
    pairs(crossing).into_iter().all(|(a, b)| !contradict(a, b))
}

/// Every pair of choices in a crossing, the earlier factor first.
fn pairs(crossing: &Crossing) -> Vec<((usize, usize), (usize, usize))> {
    let chosen: Vec<(usize, usize)> = crossing.iter().copied().enumerate().collect();
    (0..chosen.len())
        .flat_map(|i| (i + 1..chosen.len()).map(move |j| (i, j)))
        .map(|(i, j)| (chosen[i], chosen[j]))
        .collect()
}

/// Crossings that have every possible pair of choices, and some more. The same in every process.
fn crossings() -> Vec<Crossing> {
    let mut open = BTreeSet::new();
    for (i, a) in FACTORS.iter().enumerate() {
        for (j, b) in FACTORS.iter().enumerate().skip(i + 1) {
            open.extend((0..a.len()).flat_map(|x| (0..b.len()).map(move |y| ((i, x), (j, y)))));
        }
    }
    open.retain(|(a, b)| !contradict(*a, *b));
    let rng = Rng::new(11, Stream::Sample);
    let mut draws = 0;
    let mut random = |fixed: &[(usize, usize)]| loop {
        let mut crossing: Crossing = std::array::from_fn(|f| {
            draws += 1;
            rng.below(0, draws, FACTORS[f].len() as u64) as usize
        });
        fixed.iter().for_each(|&(f, value)| crossing[f] = value);
        if possible(&crossing) {
            return crossing;
        }
    };
    let mut found = Vec::new();
    while let Some(&(a, b)) = open.first() {
        let candidates: Vec<Crossing> = (0..30).map(|_| random(&[a, b])).collect();
        let news = |c: &Crossing| pairs(c).iter().filter(|pair| open.contains(pair)).count();
        let best = candidates.into_iter().max_by_key(news).expect("there are candidates");
        pairs(&best).iter().for_each(|pair| {
            open.remove(pair);
        });
        found.push(best);
    }
    found.extend((0..MORE).map(|_| random(&[])));
    found
}

fn settings(crossing: &Crossing) -> Vec<&'static str> {
    let mut settings = vec!["steps=3"];
    crossing.iter().enumerate().for_each(|(f, &value)| settings.extend(FACTORS[f][value]));
    settings
}

/// Three blocks deep, so that an early exit has two places.
fn student() -> Gpt2 {
    let config =
        Gpt2Config { initializer_range: 0.2, ..Gpt2Config::new(tiny::VOCAB, CONTEXT, 16, 3, 2) };
    Gpt2::scratch(config, 1, &Device::Cpu).unwrap()
}

/// A trainer of a crossing, and what it will be given.
fn begun(crossing: &Crossing) -> (Trainer, Vec<Batch>) {
    let plan = plan(&settings(crossing));
    let student = student();
    if plan.select.schedule == AlphaSchedule::EasyShare {
        // Sure of itself, so that some tokens are easy.
        with_mut(student.params.wte(), |wte| wte.iter_mut().for_each(|x| *x *= 6.0)).unwrap();
    }
    let mut batches: Vec<Batch> = (0..STEPS).map(|s| batch(s, ROWS)).collect();
    for batch in &mut batches {
        if plan.select.schedule == AlphaSchedule::EasyShare {
            make_easy(&student, batch);
        }
        if crossing[INVALID] == 1 {
            // Some positions, and a whole sequence: its pool is empty, and its micro-batch may be.
            [5, 16, 17, 31]
                .into_iter()
                .chain(2 * CONTEXT..3 * CONTEXT)
                .for_each(|i| batch.valid[i] = false);
        }
    }
    (trainer_of(plan, student, model(24, 3, 2)), batches)
}

/// Every third target becomes what the student predicts.
fn make_easy(student: &Gpt2, batch: &mut Batch) {
    let net = Net::new(student).unwrap();
    let hidden = net.hidden(&batch.inputs, CONTEXT, net.layers(), None).unwrap();
    let rows = net.logits(&hidden).unwrap().to_vec2::<f64>().unwrap();
    for (i, row) in rows.iter().enumerate().step_by(3) {
        let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        batch.targets[i] = best.unwrap() as u32;
    }
}

/// Whether two numbers are the same up to the rounding of single precision, of numbers of the order
/// of `scale`.
fn near(got: f64, want: f64, scale: f64) -> bool {
    (got - want).abs() <= 2e-5 * scale.max(want.abs())
}

/// What differs between a report and what was expected.
fn differences(report: &StepReport, want: &Expected) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut exact = |what: &str, got: u64, want: u64| {
        if got != want {
            wrong.push(format!("{what} is {got}, expected {want}"));
        }
    };
    exact("tokens", report.sums.tokens, want.tokens);
    exact("sequences", report.sums.sequences.0, want.sequences.0);
    exact("sequences left", report.sums.sequences.1, want.sequences.1);
    exact("valid", report.sums.valid, want.valid);
    exact("kept", report.sums.kept, want.kept);
    exact("rows", report.sums.rows, want.rows);
    exact("easy", report.sums.easy, want.easy);
    exact("pools", report.sums.pools as u64, want.pools as u64);
    exact("scores", report.sums.scores.len() as u64, want.scores.len() as u64);
    exact(
        "whether a threshold was carried",
        report.carried.is_some().into(),
        want.carried.is_some().into(),
    );
    let mut close = |what: &str, got: f64, want: f64, scale: f64| {
        if !near(got, want, scale) {
            wrong.push(format!("{what} is {got}, expected {want}"));
        }
    };
    // Ada-ESLM divides by a mean score, which may be small.
    close("alpha", report.settings.alpha, want.alpha, 1.0);
    close("alpha_seq", report.settings.alpha_seq, want.alpha_seq, 0.0);
    close("lambda", report.settings.lambda, want.lambda, 0.0);
    close("temperature", report.settings.temperature, want.temperature, 0.0);
    close("denominator", report.denominator, want.denominator, 0.0);
    close("loss", report.sums.loss, want.loss * want.denominator, 1.0);
    close("nll", report.sums.nll, want.nll, 1.0);
    close("kept_nll", report.sums.kept_nll, want.kept_nll, 1.0);
    for (got, want) in report.sums.scores.iter().zip(&want.scores) {
        close("a score", f64::from(*got), *want, 1.0);
    }
    close("var", report.sums.var, want.var, want.pools as f64);
    close("cvar", report.sums.cvar, want.cvar, want.kept as f64);
    close("row norms", report.sums.row_norms.0, want.row_norms.0, 1e-3);
    close("squares of row norms", report.sums.row_norms.1, want.row_norms.1, 1e-3);
    if let (Some(got), Some((threshold, lag))) = (report.carried, want.carried) {
        close("threshold", got.threshold, threshold, 1.0);
        close("lag", got.lag, lag, 0.0);
        close("error of the threshold", got.error, threshold - want.var, 1.0);
    }
    wrong
}

/// Clipped mean gradient, then AdamW, in f64: what is wrong with the norm, the moments or the
/// parameters after the step.
fn updated(
    plan: &Plan,
    before: &Before,
    trainer: &Trainer,
    report: &StepReport,
    gradient: &[Vec<f64>],
) -> Vec<String> {
    let optim = &plan.optim;
    let norm = gradient.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
    let clip = if optim.clip > 0.0 && norm > optim.clip { optim.clip / norm } else { 1.0 };
    let mut wrong = Vec::new();
    if !near(report.grad_norm, norm, 1e-3) {
        wrong.push(format!("grad_norm is {}, expected {norm}", report.grad_norm));
    }
    let t = (before.updates + 1) as i32;
    let (first, second) = (1.0 - optim.beta1.powi(t), 1.0 - optim.beta2.powi(t));
    for (i, (name, tensor)) in trainer.student.params.named().enumerate() {
        let after =
            [tensor, &trainer.state.m.tensors()[i], &trainer.state.v.tensors()[i]].map(numbers);
        let decay = if tensor.rank() == 2 { optim.weight_decay } else { 0.0 };
        for (j, g) in gradient[i].iter().map(|g| g * clip).enumerate() {
            let [p, m, v] = [0, 1, 2].map(|part| before.numbers[part][i][j]);
            let m = optim.beta1 * m + (1.0 - optim.beta1) * g;
            let v = optim.beta2 * v + (1.0 - optim.beta2) * g * g;
            let p = p - optim.lr * (decay * p + (m / first) / ((v / second).sqrt() + optim.eps));
            let scale = norm * clip;
            // The rounding of a gradient reaches its parameter lr / eps times, which is 1 here.
            let off =
                [(p, after[0][j], 0.3), (m, after[1][j], scale), (v, after[2][j], scale * scale)]
                    .map(|(want, got, scale)| (got - want).abs() > 1e-5 * scale);
            if off.contains(&true) {
                wrong.push(format!(
                    "{name}[{j}]: {:?}, expected {:?}",
                    after.each_ref().map(|a| a[j]),
                    [p, m, v]
                ));
                break;
            }
        }
    }
    wrong
}

/// Parameters and moments.
struct Before {
    numbers: [Vec<Vec<f64>>; 3],
    updates: u64,
}

impl Before {
    fn of(trainer: &Trainer) -> Self {
        let sets = [&trainer.student.params, &trainer.state.m, &trainer.state.v];
        Self {
            numbers: sets.map(|set| set.tensors().iter().map(numbers).collect()),
            updates: trainer.state.step,
        }
    }
}

/// How a crossing went.
#[derive(Default)]
struct Outcome {
    wrong: Vec<String>,
    /// Steps compared, and those that were not, because rounding decides in them.
    steps: u64,
    tied: u64,
    /// Steps in which something was dropped, in which a threshold was carried, in which rows were
    /// drawn at the head.
    met: [u64; 3],
}

fn judge(crossing: &Crossing) -> Outcome {
    let (mut trainer, batches) = begun(crossing);
    let plan = trainer.plan.clone();
    let teacher = trainer.teacher.as_ref().map(|t| Net::new(t.model()).unwrap());
    let mut memory = SelectionState::default();
    let mut outcome = Outcome::default();
    for (s, batch) in (0..STEPS).zip(&batches) {
        let (before, net) = (Before::of(&trainer), Net::new(&trainer.student).unwrap());
        let at = (s, CONSUMED + s * ROWS as u64);
        let want = reference::step(&plan, &net, teacher.as_ref(), &mut memory, at, batch).unwrap();
        let report = trainer.step(at.0, at.1, batch).unwrap();
        if want.margin < TIE {
            outcome.tied += STEPS - s;
            break;
        }
        outcome.steps += 1;
        let met = [want.kept < want.valid, want.carried.is_some(), want.gradient.is_none()];
        outcome.met.iter_mut().zip(met).for_each(|(sum, met)| *sum += u64::from(met));
        let mut wrong = differences(&report, &want);
        match &want.gradient {
            Some(gradient) if want.rows > 0 => {
                wrong.extend(updated(&plan, &before, &trainer, &report, gradient))
            }
            _ => {}
        }
        if !wrong.is_empty() {
            outcome.wrong.push(format!(
                "{:?}, step {s}:\n  {}",
                settings(crossing),
                wrong.join("\n  ")
            ));
            break;
        }
    }
    outcome
}

#[test]
fn every_pair_of_choices_gives_the_step_of_the_slow_reference() {
    let crossings = crossings();
    let outcomes: Vec<Outcome> = crossings.par_iter().map(judge).collect();
    let wrong: Vec<&String> = outcomes.iter().flat_map(|o| &o.wrong).collect();
    let shown: Vec<&str> = wrong.iter().take(5).map(|w| w.as_str()).collect();
    assert!(
        wrong.is_empty(),
        "{} of {} crossings differ:\n{}",
        wrong.len(),
        crossings.len(),
        shown.join("\n")
    );
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let (steps, tied) = (sum(|o| o.steps), sum(|o| o.tied));
    assert!(tied * 10 < steps, "{tied} steps meet a tie, {steps} do not: the net has holes");
    let met = [sum(|o| o.met[0]), sum(|o| o.met[1]), sum(|o| o.met[2])];
    assert!(
        met.iter().all(|n| n * 20 > steps),
        "of {steps} steps too few select, carry or draw: {met:?}"
    );
}

#[test]
fn the_crossings_have_every_pair_that_a_plan_accepts() {
    let crossings = crossings();
    assert!((100..400).contains(&crossings.len()), "{}", crossings.len());
    assert!(crossings.iter().all(possible));
    // What is called a contradiction is refused, and all else is there.
    for (i, a) in FACTORS.iter().enumerate() {
        for (j, b) in FACTORS.iter().enumerate().skip(i + 1) {
            for (x, y) in (0..a.len()).flat_map(|x| (0..b.len()).map(move |y| (x, y))) {
                if contradict((i, x), (j, y)) {
                    let mut overrides = Overrides::default();
                    let teacher: &[&str] =
                        if j == TEACHER || i == TEACHER { &[] } else { &["teacher=t"] };
                    let settings = [a[x], b[y], teacher].concat();
                    settings.iter().for_each(|setting| overrides.set(setting).unwrap());
                    assert!(
                        config::load(None, &overrides).is_err(),
                        "{settings:?} is no contradiction"
                    );
                    continue;
                }
                let has = |c: &Crossing| c[i] == x && c[j] == y;
                assert!(crossings.iter().any(has), "no crossing has {:?} with {:?}", a[x], b[y]);
            }
        }
    }
}

/// A carried threshold decides on a row as it is scored, unless its teacher is asked for kept rows
/// only.
#[test]
fn a_step_with_a_carried_threshold_costs_what_its_plan_foresees() {
    let (student, teacher) = (model(16, 2, 1).config, model(24, 3, 2).config);
    for (settings, one_pass) in [
        (&["select.score=loss"][..], true),
        (&["select.score=kl", "teacher=t"], true),
        (&["select.score=entropy", "teacher=t"], false),
        (&["select.score=kl", "teacher=t", "objective.signal=top-k"], true),
        (&["select.score=excess", "teacher=t", "objective.signal=sampled"], true),
        (&["select.score=entropy", "teacher=t", "objective.signal=sampled"], false),
        (&["select.score=entropy", "teacher=t", "objective.lambda=0"], true),
    ] {
        let settings = [settings, &["select.pool=carried", "machine.head=recompute"]].concat();
        let mut trainer = trainer(&settings);
        let plan = trainer.plan.clone();
        let route = Route::of(&plan, StepFacts::usual(&plan, true));
        assert_eq!(route.one_pass, one_pass, "{settings:?}");
        step(&mut trainer, 0);
        let report = step(&mut trainer, 1);
        let kept = report.sums.kept;
        let work = Work {
            sequences: ROWS as u64,
            context: CONTEXT as u64,
            kept,
            drawn: None,
            probe: None,
        };
        let shape = plan.teacher.as_ref().map(|_| &teacher);
        assert_eq!(report.sums.flops, flops(&student, shape, &plan, route, work), "{settings:?}");
    }
}

/// Where rows are differentiated as they are scored, none is drawn at the head: a forecast counts
/// all kept ones there.
#[test]
fn a_forecast_of_sampled_rows_knows_where_they_are_drawn() {
    let student = model(16, 2, 1).config;
    let settings = ["select.pool=carried", "machine.backward=sampled", "machine.rho=0.25"];
    let plan = plan(&settings);
    let work = Work {
        sequences: ROWS as u64,
        context: CONTEXT as u64,
        kept: 32,
        drawn: None,
        probe: None,
    };
    // A quarter of the 64 positions at each of two blocks, and at their keys and values.
    let trunk = trunk_backward_sampled(&student, CONTEXT as u64, 2 * 16, 2 * 16);
    let threshold = StepFacts::usual(&plan, true);
    for (threshold, at_head) in [(threshold, 32), (StepFacts { threshold: false, ..threshold }, 16)]
    {
        let route = Route::of(&plan, threshold);
        assert_eq!(route.draws_at_head, !route.one_pass);
        let found = flops(&student, None, &plan, route, work).student_backward;
        assert_eq!(found, (trunk + head_backward(&student, at_head)) as f64, "{route:?}");
    }
}
