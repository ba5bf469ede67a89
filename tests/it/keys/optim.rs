//! `[optim]` and `[schedule]`: what AdamW does with the gradient of the first step, number by
//! number.

use super::{Here, Proofs, There, at, close, first, reports};
use crate::laws::{flat, model};
use eslm_kd::train::Trainer;
use std::f64::consts::PI;

pub const KEYS: Proofs = &[
    ("optim.lr", Here(lr)),
    ("optim.beta1", Here(beta1)),
    ("optim.beta2", Here(beta2)),
    ("optim.eps", Here(eps)),
    ("optim.weight_decay", Here(weight_decay)),
    ("optim.clip", Here(clip)),
    (
        "optim.on_nonfinite",
        There("bad_numbers.rs", "what_is_not_finite_stops_the_run_or_is_skipped"),
    ),
    ("optim.max_skips", There("bad_numbers.rs", "what_is_not_finite_stops_the_run_or_is_skipped")),
    ("schedule.kind", Here(kind)),
    ("schedule.warmup", Here(warmup)),
    ("schedule.floor", Here(floor)),
    ("schedule.decay", Here(decay)),
];

/// The constants of an update.
#[derive(Clone, Copy)]
struct Constants {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
}

/// Those of `laws.rs`.
const BASE: Constants =
    Constants { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-2, weight_decay: 0.1 };

/// The gradient of the first step: the first moment of an optimizer that forgets all before it.
fn gradient() -> Vec<f64> {
    let trainer = at(&["optim.beta1=0", "optim.clip=0"], 0).0;
    flat(&trainer.state.m).into_iter().map(f64::from).collect()
}

/// That a first step with these settings, whose gradient is `scale` times the usual one, ends where
/// these constants lead.
#[track_caller]
fn leads(settings: &[&str], constants: Constants, scale: f64) {
    let trainer: Trainer = at(&[&["optim.clip=0"], settings].concat(), 0).0;
    let before = model(16, 2, 1);
    let is_matrix =
        before.params.tensors().iter().flat_map(|t| vec![t.rank() == 2; t.elem_count()]);
    let numbers = |set| flat(set).into_iter().map(f64::from);
    let (m, v) = (numbers(&trainer.state.m), numbers(&trainer.state.v));
    let places = numbers(&before.params).zip(numbers(&trainer.student.params)).zip(m.zip(v));
    let Constants { lr, beta1, beta2, eps, weight_decay } = constants;
    for ((((p, after), (m, v)), matrix), g) in places.zip(is_matrix).zip(gradient()) {
        let g = g * scale;
        close("first moment", m, (1.0 - beta1) * g);
        assert!(
            (v - (1.0 - beta2) * g * g).abs() < 1e-5 * (g * g).max(1e-6),
            "second moment {v} of gradient {g}"
        );
        // After one update the corrections of both moments leave g and its magnitude.
        let moved = if matrix { lr * weight_decay * p } else { 0.0 } + lr * g / (g.abs() + eps);
        assert!(
            (p - moved - after).abs() < 1e-6,
            "{settings:?}: from {p} to {after}, expected to move by {moved}"
        );
    }
}

fn lr() {
    leads(&[], BASE, 1.0);
    leads(&["optim.lr=0.03"], Constants { lr: 0.03, ..BASE }, 1.0);
    assert_eq!(first(&["optim.lr=0.03"]).settings.lr, 0.03);
}

fn beta1() {
    leads(&["optim.beta1=0.5"], Constants { beta1: 0.5, ..BASE }, 1.0);
}

fn beta2() {
    leads(&["optim.beta2=0.6"], Constants { beta2: 0.6, ..BASE }, 1.0);
}

fn eps() {
    leads(&["optim.eps=0.3"], Constants { eps: 0.3, ..BASE }, 1.0);
}

fn weight_decay() {
    leads(&["optim.weight_decay=5"], Constants { weight_decay: 5.0, ..BASE }, 1.0);
    leads(&["optim.weight_decay=0"], Constants { weight_decay: 0.0, ..BASE }, 1.0);
}

fn clip() {
    let norm = gradient().iter().map(|g| g * g).sum::<f64>().sqrt();
    close("the norm is reported as it was", first(&["optim.clip=0.05"]).grad_norm, norm);
    assert!(norm > 0.05, "{norm}");
    leads(&["optim.clip=0.05"], BASE, 0.05 / norm);
    leads(&["optim.clip=1000"], BASE, 1.0);
    leads(&["optim.clip=0"], BASE, 1.0);
}

/// The learning rates of a run of ten steps whose peak is 1.
fn rates(settings: &[&str]) -> Vec<f64> {
    let common =
        ["steps=10", "optim.lr=1", "optim.eps=1000", "schedule.floor=0.1", "schedule.warmup=2"];
    reports(&[&common[..], settings].concat(), 10).iter().map(|r| r.settings.lr).collect()
}

#[track_caller]
fn are(settings: &[&str], want: impl Fn(f64) -> f64) {
    for (s, rate) in rates(settings).into_iter().enumerate() {
        let want = want(s as f64);
        assert!((rate - want).abs() < 1e-12, "{settings:?}, step {s}: {rate}, expected {want}");
    }
}

fn warm(s: f64, after: f64) -> f64 {
    if s < 2.0 { (s + 1.0) / 2.0 } else { after }
}

fn kind() {
    are(&["schedule.kind=constant"], |s| warm(s, 1.0));
    are(&["schedule.kind=linear"], |s| warm(s, 1.0 - 0.9 * (s - 2.0) / 8.0));
    are(&["schedule.kind=cosine"], |s| warm(s, 0.1 + 0.45 * (1.0 + (PI * (s - 2.0) / 8.0).cos())));
    // The last two of ten steps.
    are(&["schedule.kind=wsd"], |s| warm(s, 1.0 - 0.9 * (s - 8.0).max(0.0) / 2.0));
}

fn warmup() {
    are(&["schedule.warmup=0"], |_| 1.0);
    are(&["schedule.warmup=4"], |s| ((s + 1.0) / 4.0).min(1.0));
    are(&["schedule.warmup=20"], |s| (s + 1.0) / 20.0);
}

fn floor() {
    are(&["schedule.kind=linear", "schedule.floor=0.6"], |s| warm(s, 1.0 - 0.4 * (s - 2.0) / 8.0));
    are(&["schedule.kind=linear", "schedule.floor=0"], |s| warm(s, 1.0 - (s - 2.0) / 8.0));
}

fn decay() {
    are(&["schedule.kind=wsd", "schedule.decay=0.5"], |s| {
        warm(s, 1.0 - 0.9 * (s - 5.0).max(0.0) / 5.0)
    });
    are(&["schedule.kind=wsd", "schedule.decay=0"], |s| warm(s, 1.0));
}
