//! The curves of each kind of run, pinned in `tests/golden/curves.json`: what changes a number of
//! training on the way from a run file into a step changes a curve.
//!
//! `ESLM_KD_CURVES=write` writes the file anew, for a change that is meant. `ESLM_KD_CURVES=exact`
//! compares every bit, for a refactoring on the machine that wrote the file.
//!
//! Otherwise integers are compared exactly and floats at 2e-5 of their size, since chips differ in
//! their matrix kernels, and so in the last bits of every product. A choice could then fall the
//! other way where two scores are equal up to rounding. Such a step is recognised by its own
//! scores: where those on both sides of a threshold are closer than [`TIE`], the rest of that run
//! is not compared, and few runs may be so. A row that a sampled backward draws moves only if its
//! uniform number lies within rounding of its probability: with some ten thousand draws in this
//! file, once in a hundred kinds of chips.

use crate::laws::{CONTEXT, MATHEMATICS, batch, step, trainer};
use eslm_kd::config::{Plan, Pool, Tail};
use eslm_kd::ops::matmul::Bf16;
use eslm_kd::select::kept_of;
use eslm_kd::train::StepReport;
use serde_json::Value;
use std::path::PathBuf;

const STEPS: u64 = 4;
/// Scores this close are equal on some chip. Their spread is of the order of 1, their rounding of
/// the order of 1e-6.
const TIE: f64 = 1e-5;
/// Relative.
const TOLERANCE: f64 = 2e-5;
/// The same with factors of 8 bits: a difference in the last bit of an f32 may turn the last of
/// these.
const TOLERANCE_BF16: f64 = 2e-3;

/// What every row of the mathematics is crossed with, some of them each.
const WAYS: [&[&str]; 20] = [
    &["method=clm"],
    &["machine.backward=sparse"],
    &["machine.backward=sampled", "machine.rho=0.5"],
    &["machine.backward=sampled", "machine.added_variance=1"],
    &["machine.head=recompute", "machine.micro_rows=2"],
    &["select.pool=micro-batch", "machine.micro_rows=2"],
    &["select.pool=carried", "select.threshold_ema=0.7", "select.alpha=0.3"],
    &["select.cvar_weight=0.6", "select.rest_rate=0.4", "machine.micro_rows=1"],
    &["select.pool=carried", "select.cvar_weight=0.3", "machine.head=recompute"],
    &["select.alpha_seq=0.5", "select.probe_stride=4", "select.probe_score=loss"],
    &[
        "select.alpha_seq=0.5",
        "select.probe_score=random",
        "machine.head=recompute",
        "machine.micro_rows=2",
    ],
    &["select.alpha_seq=0.6", "select.exit_layer=2", "machine.backward=sampled", "machine.rho=0.6"],
    &["select.burn_in=1", "select.ramp=2", "optim.clip=0.1"],
    &["steps=4", "schedule.kind=cosine", "schedule.warmup=2", "optim.weight_decay=0.5"],
    &["steps=4", "schedule.kind=wsd", "schedule.decay=0.5", "optim.beta1=0.5", "optim.beta2=0.8"],
    &["select.schedule=ada-eslm", "select.interval=1", "select.gamma=3", "select.tail=low"],
    &["method=clm", "machine.backward=sampled", "machine.rho=0.3", "machine.micro_rows=2"],
    &["machine.dtype=bf16"],
    &[
        "machine.dtype=bf16",
        "machine.head=recompute",
        "machine.activations=recompute",
        "machine.backward=dense",
    ],
    &["method=clm", "machine.dtype=bf16", "machine.micro_rows=1"],
];

/// Ways of a run with a teacher.
const TAUGHT: [&[&str]; 4] = [
    &["steps=4", "objective.lambda=0.2", "objective.lambda_end=0.8", "objective.temperature_end=3"],
    &[
        "steps=4",
        "objective.temperature=2.5",
        "objective.temperature_end=1",
        "objective.schedule=cosine",
    ],
    &["steps=4", "objective.lambda_end=0", "machine.backward=sampled", "machine.rho=0.5"],
    &[
        "objective.divergence=skew-kl",
        "objective.skew=0.4",
        "machine.backward=sampled",
        "machine.rho=0.5",
    ],
];

/// The settings of every run: each row of the mathematics as it is, and in four ways that differ
/// from row to row.
fn runs() -> Vec<Vec<&'static str>> {
    let mut runs = Vec::new();
    for (i, mathematics) in MATHEMATICS.into_iter().enumerate() {
        let has = |word: &str| mathematics.iter().any(|m| m.contains(word));
        runs.push(mathematics.to_vec());
        let mut ways: Vec<&[&str]> = (0..4).map(|j| WAYS[(i * 7 + j * 5) % WAYS.len()]).collect();
        if has("teacher=t") && !mathematics.contains(&"objective.lambda=0") {
            ways.push(TAUGHT[i % TAUGHT.len()]);
        }
        for way in ways {
            let asks = |word: &str| way.iter().any(|m| m.contains(word)) || has(word);
            // What the plan refuses: see `check` in src/config/load.rs.
            let refused = (asks("entropy-kl") && asks("carried"))
                || (asks("cvar_weight=") && asks("alpha_seq"))
                || (asks("signal=sampled") && asks("divergence=skew-kl"));
            if !refused {
                runs.push([mathematics, way].concat());
            }
        }
    }
    runs
}

/// What is pinned of a step.
#[derive(Debug, Clone, PartialEq)]
struct Point {
    /// Loss, nll, gradient norm.
    floats: [f64; 3],
    /// Kept positions, rows at the head, rows of all blocks, and FLOPs by part.
    counts: [u64; 7],
}

impl Point {
    fn of(report: &StepReport) -> Self {
        let flops = report.sums.flops;
        let parts = [flops.student_forward, flops.student_backward, flops.teacher, flops.scoring]
            .map(|f| f as u64);
        let [forward, backward, teacher, scoring] = parts;
        let counts = [
            report.sums.kept,
            report.sums.rows,
            report.sums.block_rows.0,
            forward,
            backward,
            teacher,
            scoring,
        ];
        Self { floats: [report.sums.loss, report.sums.nll, report.grad_norm], counts }
    }

    /// As the file has it. Floats are texts of 17 significant digits: a JSON reader may round
    /// numbers.
    fn line(&self) -> String {
        let floats = self.floats.map(|x| format!("\"{x:.16e}\"")).join(", ");
        let counts = self.counts.map(|n| n.to_string()).join(", ");
        format!("[{floats}, {counts}]")
    }

    fn read(line: &Value) -> Self {
        let float = |i: usize| {
            line[i].as_str().and_then(|text| text.parse().ok()).expect("a float as a text")
        };
        let count = |i: usize| line[i].as_u64().expect("a count");
        Self { floats: [0, 1, 2].map(float), counts: [3, 4, 5, 6, 7, 8, 9].map(count) }
    }

    fn is_close(&self, other: &Self, tolerance: f64) -> bool {
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= tolerance * a.abs().max(b.abs());
        self.counts == other.counts && self.floats.iter().zip(&other.floats).all(close)
    }
}

/// The curve of a run, and the first of its steps in which a threshold went through a near tie.
fn curve(settings: &[&str]) -> (Vec<Point>, Option<usize>) {
    let mut trainer = trainer(settings);
    let mut tied = None;
    let points = (0..STEPS).map(|s| {
        let threshold = trainer.selection.carried.map(|c| f64::from(c.threshold));
        let report = step(&mut trainer, s);
        if tied.is_none() && near_tie(&trainer.plan, &report, threshold) {
            tied = Some(s as usize);
        }
        Point::of(&report)
    });
    (points.collect(), tied)
}

/// Whether rounding could move a position over a threshold. The early exit's own thresholds are not seen
/// from here; its means are a handful a run.
fn near_tie(plan: &Plan, report: &StepReport, carried: Option<f64>) -> bool {
    let scores: Vec<f64> = report.sums.scores.iter().map(|s| f64::from(*s)).collect();
    let pool = match plan.select.pool {
        Pool::Sequence => CONTEXT,
        Pool::MicroBatch => scores.len() / (plan.data.rows / micro_rows(plan)).max(1),
        Pool::Step | Pool::Carried => scores.len(),
    };
    if plan.select.pool == Pool::Carried {
        return carried.is_some_and(|t| scores.iter().any(|s| (s - t).abs() < TIE));
    }
    scores.chunks(pool.max(1)).any(|pool| {
        let mut sorted = pool.to_vec();
        sorted.sort_by(f64::total_cmp);
        if plan.select.tail == Tail::High {
            sorted.reverse();
        }
        let k = kept_of(report.settings.alpha, sorted.len());
        // An exact tie is no near one: on every chip it goes to the lower position.
        k < sorted.len() && sorted[k - 1] != sorted[k] && (sorted[k - 1] - sorted[k]).abs() < TIE
    })
}

fn micro_rows(plan: &Plan) -> usize {
    match plan.machine.micro_rows {
        eslm_kd::config::MicroRows::Rows(n) => n,
        eslm_kd::config::MicroRows::Auto => plan.data.rows,
    }
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/curves.json")
}

fn is_bf16(settings: &[&str]) -> bool {
    settings.contains(&"machine.dtype=bf16")
}

#[test]
fn every_kind_of_run_has_the_curve_that_was_pinned() {
    let runs = runs();
    let mode = std::env::var("ESLM_KD_CURVES").unwrap_or_default();
    let bf16 = Bf16::detect().is_ok();
    if !bf16 {
        eprintln!("skipped: the curves of bf16, which this chip does not multiply");
    }
    if mode == "write" {
        assert!(bf16, "only a chip that multiplies bf16 can write all curves");
        let line = |settings: &Vec<&str>| {
            let points: Vec<String> = curve(settings).0.iter().map(Point::line).collect();
            format!("  \"{}\": [\n    {}\n  ]", settings.join(" "), points.join(",\n    "))
        };
        let text: Vec<String> = runs.iter().map(line).collect();
        std::fs::write(file(), format!("{{\n{}\n}}\n", text.join(",\n"))).unwrap();
        return;
    }
    let text = std::fs::read_to_string(file()).unwrap();
    let pinned: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    let names: Vec<String> = runs.iter().map(|settings| settings.join(" ")).collect();
    assert_eq!(
        pinned.keys().collect::<Vec<_>>(),
        names.iter().collect::<Vec<_>>(),
        "the file is of other runs"
    );
    let (mut wrong, mut ties) = (Vec::new(), 0);
    for (settings, name) in
        runs.iter().zip(&names).filter(|(settings, _)| bf16 || !is_bf16(settings))
    {
        let want: Vec<Point> = pinned[name].as_array().unwrap().iter().map(Point::read).collect();
        let (got, tied) = curve(settings);
        assert_eq!(got.len(), want.len(), "{name}");
        let compared = if mode == "exact" { got.len() } else { tied.unwrap_or(got.len()) };
        ties += usize::from(compared < got.len());
        let tolerance = match (mode.as_str(), is_bf16(settings)) {
            ("exact", _) => 0.0,
            (_, true) => TOLERANCE_BF16,
            (_, false) => TOLERANCE,
        };
        // The first step that differs: the later ones follow from it.
        let off = (0..compared).find(|&s| !got[s].is_close(&want[s], tolerance));
        wrong.extend(
            off.map(|s| {
                format!("{name}, step {s}:\n  pinned {:?}\n  found  {:?}", want[s], got[s])
            }),
        );
    }
    assert!(
        wrong.is_empty(),
        "{} of {} curves moved:\n{}",
        wrong.len(),
        runs.len(),
        wrong.join("\n")
    );
    assert!(
        ties <= runs.len() / 10,
        "{ties} of {} runs meet a near tie: the net has holes",
        runs.len()
    );
}

#[test]
fn the_pinned_runs_reach_every_way() {
    let runs = runs();
    assert!((80..=130).contains(&runs.len()), "{}", runs.len());
    for way in WAYS.iter().chain(&TAUGHT) {
        let found = runs.iter().filter(|run| run.ends_with(way)).count();
        assert!(found >= 2, "{way:?} is in {found} runs");
    }
    // And every step of every run trains on something.
    assert!(batch(0, 4).valid_count() == 4 * CONTEXT);
}
