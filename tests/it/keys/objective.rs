//! `[objective]`: the loss of a step that keeps everything, from the statistics and the references
//! of the head.

use super::{Here, Proofs, at, close, differs, first};
use crate::laws::{CONTEXT, ROWS, batch, bits, model};
use eslm_kd::loss::SignalKind;
use eslm_kd::loss::head::{self, Logits, reference};
use eslm_kd::loss::{Divergence, Objective};
use std::f64::consts::PI;

pub const KEYS: Proofs = &[
    ("objective.lambda", Here(lambda)),
    ("objective.temperature", Here(temperature)),
    ("objective.divergence", Here(divergence)),
    ("objective.beta", Here(beta)),
    ("objective.skew", Here(skew)),
    ("objective.signal", Here(signal)),
    ("objective.top_k", Here(top_k)),
    ("objective.samples", Here(samples)),
    ("objective.lambda_end", Here(lambda_end)),
    ("objective.temperature_end", Here(temperature_end)),
    ("objective.schedule", Here(schedule)),
];

const EVERYTHING: [&str; 2] = ["teacher=t", "select.alpha=0"];

/// The loss of a first step that keeps every position.
fn loss(settings: &[&str]) -> f64 {
    let report = first(&[&EVERYTHING[..], settings].concat());
    assert_eq!((report.sums.kept, report.denominator), (64, 64.0));
    report.sums.loss
}

/// Logits of student and teacher on the batch of that step.
fn logits() -> (Logits, Logits) {
    let batch = batch(0, ROWS);
    let of =
        |model: eslm_kd::model::Gpt2| model.logits(model.forward(&batch.inputs, CONTEXT).unwrap());
    (of(model(16, 2, 1)), of(model(24, 3, 2)))
}

/// The sum of the teacher's term, by the head's reference.
fn by_reference(divergence: Divergence, tau: f64) -> f64 {
    let (student, teacher) = logits();
    let log = |logits: &Logits, model: eslm_kd::model::Gpt2| {
        let z = reference::logits(logits.hidden(), model.params.wte()).unwrap();
        reference::log_softmax(&z, tau).unwrap()
    };
    let rows = reference::divergence(
        divergence,
        &log(&student, model(16, 2, 1)),
        &log(&teacher, model(24, 3, 2)),
    );
    let rows: Vec<f32> = rows.unwrap().to_vec1().unwrap();
    tau * tau * rows.iter().map(|d| f64::from(*d)).sum::<f64>()
}

fn lambda() {
    let [none, all] = ["0", "1"].map(|lambda| loss(&[&format!("objective.lambda={lambda}")]));
    differs("lambda", none, all);
    for weight in [0.25, 0.5, 0.9] {
        let mixed = loss(&[&format!("objective.lambda={weight}")]);
        close("a mean of both", mixed, (1.0 - weight) * none + weight * all);
    }
}

fn temperature() {
    for tau in [0.5, 1.0, 3.0] {
        let found = loss(&["objective.lambda=1", &format!("objective.temperature={tau}")]);
        close("tau^2 KL at tau", found, by_reference(Divergence::ForwardKl, tau));
    }
    // Cross-entropy has none.
    let [cold, hot] = ["1", "4"]
        .map(|tau| loss(&["objective.lambda=0", &format!("objective.temperature={tau}")]));
    assert_eq!(cold, hot);
}

fn divergence() {
    let all = [
        ("forward-kl", Divergence::ForwardKl),
        ("reverse-kl", Divergence::ReverseKl),
        ("jsd", Divergence::Jsd { beta: 0.5 }),
        ("skew-kl", Divergence::SkewKl { skew: 0.1 }),
        ("skew-reverse-kl", Divergence::SkewReverseKl { skew: 0.1 }),
        ("tv", Divergence::TotalVariation),
    ];
    for (word, divergence) in all {
        let settings = [
            "objective.lambda=1",
            "objective.temperature=2",
            &format!("objective.divergence={word}"),
        ];
        close(word, loss(&settings), by_reference(divergence, 2.0));
    }
}

fn beta() {
    for beta in [0.1f32, 0.8] {
        let settings =
            ["objective.lambda=1", "objective.divergence=jsd", &format!("objective.beta={beta}")];
        close("jsd", loss(&settings), by_reference(Divergence::Jsd { beta }, 1.0));
    }
}

fn skew() {
    for skew in [0.0f32, 0.4] {
        let of = |word: &str| {
            let [divergence, skew] =
                [format!("objective.divergence={word}"), format!("objective.skew={skew}")];
            loss(&["objective.lambda=1", &divergence, &skew])
        };
        close("skew-kl", of("skew-kl"), by_reference(Divergence::SkewKl { skew }, 1.0));
        close(
            "skew-reverse-kl",
            of("skew-reverse-kl"),
            by_reference(Divergence::SkewReverseKl { skew }, 1.0),
        );
    }
}

/// The loss beside a signal of this kind, as the head forms it.
fn beside(kind: SignalKind) -> f64 {
    let batch = batch(0, ROWS);
    let objective = Objective { lambda: 1.0, temperature: 2.0, divergence: Divergence::ForwardKl };
    let (student, teacher) = logits();
    let stats = head::scan(&student, Some(&teacher), &batch.targets, 2.0).unwrap();
    let positions: Vec<u64> = (0..64).map(|i| batch.position(i)).collect();
    let signal = head::reduce(&teacher, &batch.targets, kind, 2.0, 3, &positions).unwrap();
    let wte = model(16, 2, 1).params.wte().zeros_like().unwrap();
    head::loss(
        head::LossInput {
            student: &student,
            signal: Some(&signal),
            stats: &stats,
            targets: &batch.targets,
            weights: &[1.0; 64],
            objective,
        },
        &wte,
    )
    .unwrap()
    .sum
}

fn heard(signal: &[&str]) -> f64 {
    loss(&[&["objective.lambda=1", "objective.temperature=2"], signal].concat())
}

fn signal() {
    let dense = heard(&[]);
    close("dense", dense, beside(SignalKind::Dense));
    let few = heard(&["objective.signal=top-k"]);
    close("top-k", few, beside(SignalKind::TopK(64)));
    let sampled = heard(&["objective.signal=sampled"]);
    close("sampled", sampled, beside(SignalKind::Sampled(50)));
    differs("top-k", dense, few);
    differs("sampled", dense, sampled);
}

fn top_k() {
    let of = |k: usize| heard(&["objective.signal=top-k", &format!("objective.top_k={k}")]);
    for k in [1, 7, 100] {
        close("so many entries", of(k), beside(SignalKind::TopK(k)));
    }
    assert!(of(1) < of(7) && of(7) < of(100) && of(100) < of(320), "more entries tell more");
    let (all, dense) = (of(320), heard(&[]));
    assert!(
        (all - dense).abs() < 1.2e-3 * dense,
        "all entries are the dense signal, but for levels"
    );
}

fn samples() {
    for n in [1, 7, 200] {
        let found = heard(&["objective.signal=sampled", &format!("objective.samples={n}")]);
        close("so many draws", found, beside(SignalKind::Sampled(n)));
    }
}

/// A step in the middle of a run of five with an end, and one of a run that always has the value
/// expected there: the same bits of everything, and of the value itself.
fn arrives(settings: &[&str], step: u64, constant: &str) {
    let common = ["teacher=t", "steps=5", "select.score=kl"];
    let (a, moving) = at(&[&common[..], settings].concat(), step);
    let (b, standing) = at(&[&common[..], &[constant]].concat(), step);
    let what = format!("{settings:?} at step {step} is {constant}");
    assert!(
        (moving.settings.lambda - standing.settings.lambda).abs() < 1e-12,
        "{what}: {} {}",
        moving.settings.lambda,
        standing.settings.lambda
    );
    assert!((moving.settings.temperature - standing.settings.temperature).abs() < 1e-12, "{what}");
    close(&what, moving.sums.loss, standing.sums.loss);
    close(&what, moving.grad_norm, standing.grad_norm);
    if step == 0 || step == 4 {
        assert!(
            moving.sums.loss == standing.sums.loss
                && bits(&a.student.params) == bits(&b.student.params),
            "{what}"
        );
    }
}

fn lambda_end() {
    let settings = ["objective.lambda=0.2", "objective.lambda_end=0.8"];
    for (step, value) in [(0, "0.2"), (1, "0.35"), (2, "0.5"), (3, "0.65"), (4, "0.8")] {
        arrives(&settings, step, &format!("objective.lambda={value}"));
    }
}

fn temperature_end() {
    let settings = ["objective.temperature=3", "objective.temperature_end=1"];
    for (step, value) in [(0, "3"), (1, "2.5"), (2, "2"), (3, "1.5"), (4, "1")] {
        arrives(&settings, step, &format!("objective.temperature={value}"));
    }
}

fn schedule() {
    let settings = [
        "objective.schedule=cosine",
        "objective.temperature=3",
        "objective.temperature_end=1",
        "objective.lambda=0.3",
    ];
    for step in 0..5u64 {
        let value = 1.0 + 2.0 * 0.5 * (1.0 + (PI * step as f64 / 4.0).cos());
        let (_, moving) = at(&[&["teacher=t", "steps=5"][..], &settings].concat(), step);
        assert!(
            (moving.settings.temperature - value).abs() < 1e-12 && moving.settings.lambda == 0.3,
            "{}",
            moving.settings.temperature
        );
    }
    let settings =
        ["objective.schedule=cosine", "objective.lambda=0.2", "objective.lambda_end=0.8"];
    for (step, value) in
        [(0, 0.2), (1, 0.2 + 0.6 * 0.5 * (1.0 - 0.5f64.sqrt())), (2, 0.5), (4, 0.8)]
    {
        arrives(&settings, step, &format!("objective.lambda={value}"));
    }
}
