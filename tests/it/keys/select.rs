//! `[select]`, and `method`.

use super::{Here, Proofs, at, close, first, reports};
use crate::laws::{CONTEXT, ROWS, batch, model, plan, trainer_of};
use candle_core::Device;
use eslm_kd::cost::{blocks_forward, head_forward};
use eslm_kd::loss::head::{Stats, scan};
use eslm_kd::model::{Gpt2, Gpt2Config};
use eslm_kd::rng::{Rng, Stream};
use eslm_kd::train::StepReport;

pub const KEYS: Proofs = &[
    ("method", Here(method)),
    ("select.score", Here(score)),
    ("select.alpha", Here(alpha)),
    ("select.pool", Here(pool)),
    ("select.tail", Here(tail)),
    ("select.burn_in", Here(burn_in)),
    ("select.ramp", Here(ramp)),
    ("select.schedule", Here(schedule)),
    ("select.interval", Here(interval)),
    ("select.gamma", Here(gamma)),
    ("select.alpha_min", Here(alpha_min)),
    ("select.alpha_max", Here(alpha_max)),
    ("select.cvar_weight", Here(mix)),
    ("select.rest_rate", Here(rest)),
    ("select.threshold_ema", Here(carry)),
    ("select.alpha_seq", Here(alpha_seq)),
    ("select.exit_layer", Here(exit_layer)),
    ("select.probe_stride", Here(probe_stride)),
    ("select.probe_score", Here(probe_score)),
];

fn method() {
    let (eslm, clm) = (first(&["method=eslm"]), first(&["method=clm"]));
    assert_eq!((eslm.sums.kept, clm.sums.kept, clm.sums.valid), (32, 64, 64));
    assert_eq!((eslm.sums.scores.len(), clm.sums.scores.len(), clm.settings.alpha), (64, 0, 0.0));
    close("the loss of clm is that of all tokens", clm.sums.loss, clm.sums.nll);
}

fn sum(scores: &[f32]) -> f64 {
    scores.iter().map(|s| f64::from(*s)).sum()
}

fn score() {
    let loss = first(&["select.score=loss"]);
    close("scores by loss are the losses", sum(&loss.sums.scores), loss.sums.nll);
    let random = first(&["select.score=random"]);
    let rng = Rng::new(3, Stream::Score);
    let uniform: Vec<f32> = (0..64).map(|i| rng.uniform(0, i)).collect();
    assert_eq!(random.sums.scores, uniform);
    // The statistics of student and teacher, by the head's own scan.
    let (student, teacher, batch) = (model(16, 2, 1), model(24, 3, 2), batch(0, ROWS));
    let logits = |model: &Gpt2| model.logits(model.forward(&batch.inputs, CONTEXT).unwrap());
    let options = eslm_kd::loss::head::ScanOptions { reverse_kl: true, ..2.0.into() };
    let stats = scan(&logits(&student), Some(&logits(&teacher)), &batch.targets, options).unwrap();
    let total = |of: &dyn Fn(usize) -> f32| (0..64).map(|i| f64::from(of(i))).sum::<f64>();
    for (word, want) in [
        ("entropy", total(&|i| stats[i].student.entropy)),
        ("kl", total(&|i| stats[i].kl)),
        ("reverse-kl", total(&|i| stats[i].reverse_kl)),
        ("teacher-entropy", total(&|i| stats[i].teacher.entropy)),
        ("excess", total(&|i| stats[i].student.nll - stats[i].teacher.nll)),
    ] {
        let word = format!("select.score={word}");
        let report = first(&["teacher=t", "objective.temperature=2", &word]);
        close(&word, sum(&report.sums.scores), want);
    }
    let both = first(&["teacher=t", "objective.temperature=2", "select.score=entropy-kl"]);
    let unit = |i: usize, of: &dyn Fn(usize) -> f32| {
        let pool = (i / CONTEXT * CONTEXT..(i / CONTEXT + 1) * CONTEXT).map(of);
        let (low, high) =
            pool.fold((f32::MAX, f32::MIN), |(low, high), x| (low.min(x), high.max(x)));
        (of(i) - low) / (high - low)
    };
    let want = total(&|i| unit(i, &|i| stats[i].student.entropy) * unit(i, &|i| stats[i].kl));
    close("entropy-kl", sum(&both.sums.scores), want);
}

fn alpha() {
    for (alpha, kept) in [("0", 64), ("0.1", 60), ("0.5", 32), ("0.7", 20), ("0.95", 4)] {
        let report = first(&[&format!("select.alpha={alpha}")]);
        assert_eq!(
            (report.settings.alpha.to_string(), report.sums.kept),
            (alpha.to_string(), kept)
        );
    }
}

fn pool() {
    let of =
        |pool: &str, micro: &str| first(&["select.score=loss", "select.alpha=0.7", pool, micro]);
    let sequence = of("select.pool=sequence", "machine.micro_rows=2");
    let batch = of("select.pool=micro-batch", "machine.micro_rows=2");
    let whole = of("select.pool=micro-batch", "machine.micro_rows=4");
    assert_eq!((sequence.sums.pools, batch.sums.pools, whole.sums.pools), (4, 2, 1));
    assert_eq!((sequence.sums.kept, batch.sums.kept, whole.sums.kept), (4 * 5, 2 * 10, 20));
    // The largest pool finds the largest losses.
    assert!(
        whole.sums.cvar > batch.sums.cvar && batch.sums.cvar > sequence.sums.cvar,
        "{sequence:?} {batch:?} {whole:?}"
    );
    let carried = reports(&["select.score=loss", "select.pool=carried"], 2);
    assert_eq!(
        (carried[0].sums.kept, carried[0].carried),
        (64, None),
        "a first step has no threshold"
    );
    let second = carried[1].carried.unwrap();
    assert_eq!(second.threshold, carried[0].sums.var);
    let above =
        carried[1].sums.scores.iter().filter(|s| f64::from(**s) >= second.threshold).count();
    assert_eq!(carried[1].sums.kept, above as u64);
}

fn tail() {
    // Half of each: what one end keeps is what the other drops.
    let [high, low] =
        ["high", "low"].map(|end| first(&["select.score=loss", &format!("select.tail={end}")]));
    assert!(high.sums.cvar > low.sums.cvar && high.sums.kept_nll > low.sums.kept_nll);
    close("both ends together are all", high.sums.cvar + low.sums.cvar, high.sums.nll);
}

fn alphas(settings: &[&str], n: u64) -> Vec<f64> {
    reports(settings, n).iter().map(|r| r.settings.alpha).collect()
}

#[track_caller]
fn same(got: Vec<f64>, want: &[f64]) {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-9), "{got:?}, expected {want:?}");
}

fn burn_in() {
    same(alphas(&["select.burn_in=2"], 4), &[0.0, 0.0, 0.5, 0.5]);
    same(alphas(&["select.burn_in=0"], 2), &[0.5, 0.5]);
}

fn ramp() {
    same(alphas(&["select.ramp=4"], 6), &[0.0, 0.125, 0.25, 0.375, 0.5, 0.5]);
    same(alphas(&["select.burn_in=1", "select.ramp=2"], 5), &[0.0, 0.0, 0.25, 0.5, 0.5]);
}

/// Mean score of the kept positions.
fn cvar(report: &StepReport) -> f64 {
    report.sums.cvar / report.sums.kept as f64
}

const ADA: [&str; 3] = ["select.score=loss", "select.schedule=ada-eslm", "select.interval=1"];

fn schedule() {
    let moved = reports(&ADA, 4);
    for s in 1..3 {
        let delta = (cvar(&moved[s]) - cvar(&moved[s - 1])) / cvar(&moved[s - 1]);
        close("ada-eslm", moved[s + 1].settings.alpha, moved[s].settings.alpha * (-delta).exp());
    }
    same(alphas(&["select.score=loss"], 4), &[0.5; 4]);
    // Nothing is easy for a student that knows nothing.
    same(alphas(&["select.schedule=easy-share"], 3), &[0.0; 3]);
    let found = easy("select.interval=1");
    same(
        found.iter().map(|r| r.settings.alpha).collect(),
        &[0.0, share(&found[0]), share(&found[1])],
    );
    assert_eq!(easy("select.alpha=0.05")[1].settings.alpha, 0.05, "no more than the plan's alpha");
}

/// Three steps of a student that is sure that the token it just read comes again, which is right
/// ever less often.
fn easy(setting: &str) -> Vec<StepReport> {
    let settings = ["select.schedule=easy-share", "select.alpha=0.9", "optim.lr=1e-9", setting];
    let student = model(16, 2, 1);
    eslm_kd::ops::buffer::with_mut(student.params.wte(), |wte| {
        wte.iter_mut().for_each(|x| *x *= 12.0)
    })
    .unwrap();
    let mut trainer = trainer_of(plan(&settings), student, model(24, 3, 2));
    let step = |s: u64| {
        let mut batch = batch(0, ROWS);
        let right = 64 - 20 * s as usize;
        batch.targets[..right].copy_from_slice(&batch.inputs[..right]);
        trainer.step(s, 0, &batch).unwrap()
    };
    let reports: Vec<StepReport> = (0..3).map(step).collect();
    assert!(
        reports[0].sums.easy > reports[1].sums.easy && reports[1].sums.easy > reports[2].sums.easy,
        "{reports:?}"
    );
    reports
}

fn share(report: &StepReport) -> f64 {
    (report.sums.easy as f64 / 64.0).min(0.9)
}

fn interval() {
    let settings = ["select.score=loss", "select.schedule=ada-eslm", "select.interval=2"];
    let moved = reports(&settings, 5);
    same(moved[..4].iter().map(|r| r.settings.alpha).collect(), &[0.5; 4]);
    let mean = |a: &StepReport, b: &StepReport| {
        (a.sums.cvar + b.sums.cvar) / (a.sums.kept + b.sums.kept) as f64
    };
    let (before, after) = (mean(&moved[0], &moved[1]), mean(&moved[2], &moved[3]));
    close(
        "alpha after two intervals",
        moved[4].settings.alpha,
        0.5 * (-(after - before) / before).exp(),
    );
    // The share of easy tokens moves by a quarter of the way.
    let found = easy("select.interval=4");
    let moved = share(&found[0]) + (share(&found[1]) - share(&found[0])) / 4.0;
    same(found.iter().map(|r| r.settings.alpha).collect(), &[0.0, share(&found[0]), moved]);
}

fn gamma() {
    let change = |gamma: &str| {
        let settings = [&ADA[..], &[gamma]].concat();
        (reports(&settings, 3)[2].settings.alpha / 0.5).ln()
    };
    let (one, three) = (change("select.gamma=1"), change("select.gamma=3"));
    assert!(one.abs() > 1e-4, "{one}");
    close("three times as strong", three, 3.0 * one);
    assert_eq!(change("select.gamma=0"), 0.0);
}

/// The alphas of a schedule that jumps from bound to bound.
fn bounds(settings: &[&str]) -> Vec<f64> {
    alphas(&[&ADA[..], &["select.gamma=100000"], settings].concat(), 8)[2..].to_vec()
}

fn alpha_min() {
    let least = |alphas: Vec<f64>| alphas.into_iter().fold(1.0, f64::min);
    assert_eq!(least(bounds(&[])), 0.01);
    assert_eq!(least(bounds(&["select.alpha_min=0.35"])), 0.35);
}

fn alpha_max() {
    let most = |alphas: Vec<f64>| alphas.into_iter().fold(0.0, f64::max);
    assert_eq!(most(bounds(&[])), 0.9);
    assert_eq!(most(bounds(&["select.alpha_max=0.65"])), 0.65);
}

fn mix() {
    // With every dropped token drawn, the mean of all is exact.
    for (mix, mu) in [("1", 1.0), ("0.7", 0.7), ("0.2", 0.2), ("0", 0.0)] {
        for pool in ["sequence", "micro-batch"] {
            let settings = [format!("select.cvar_weight={mix}"), format!("select.pool={pool}")];
            let settings: Vec<&str> =
                settings.iter().map(String::as_str).chain(["select.rest_rate=1"]).collect();
            let report = first(&settings);
            let want = mu * report.sums.kept_nll / 32.0 + (1.0 - mu) * report.sums.nll / 64.0;
            close(&format!("{settings:?}"), report.sums.loss / report.denominator, want);
            assert_eq!(report.sums.rows, if mu < 1.0 { 64 } else { 32 });
        }
    }
    // A carried threshold keeps about (1 - alpha) M, and K is that number.
    let settings = [
        "select.pool=carried",
        "select.alpha=0.25",
        "select.cvar_weight=0.6",
        "select.rest_rate=1",
    ];
    let reports = reports(&settings, 3);
    assert_eq!(reports.iter().map(|r| r.denominator).collect::<Vec<_>>(), [64.0, 48.0, 48.0]);
    for report in &reports[1..] {
        let want = 0.6 * report.sums.kept_nll / 48.0 + 0.4 * report.sums.nll / 64.0;
        close("beside a carried threshold", report.sums.loss / 48.0, want);
    }
}

fn rest() {
    for rest in [0.2f32, 0.6] {
        let report = first(&[
            "select.score=random",
            "select.cvar_weight=0.5",
            &format!("select.rest_rate={rest}"),
        ]);
        let rng = Rng::new(3, Stream::Rest);
        let mut drawn = 0;
        for (s, pool) in report.sums.scores.chunks(CONTEXT).enumerate() {
            let mut sorted = pool.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let dropped = (0..CONTEXT).filter(|&i| pool[i] < sorted[7]);
            drawn += dropped.filter(|i| rng.uniform(0, (s * CONTEXT + i) as u64) < rest).count();
        }
        assert!(drawn > 0);
        assert_eq!(report.sums.rows, 32 + drawn as u64, "{rest}");
    }
}

fn carry() {
    for (setting, carry) in [
        ("select.threshold_ema=0.9", 0.9),
        ("select.threshold_ema=0.25", 0.25),
        ("select.threshold_ema=0", 0.0),
    ] {
        let reports = reports(&["select.score=loss", "select.pool=carried", setting], 4);
        let (mut threshold, mut lag) = (reports[0].sums.var, 1.0);
        for (before, report) in reports.iter().zip(&reports[1..]).skip(1) {
            threshold = carry * threshold + (1.0 - carry) * before.sums.var;
            lag = 1.0 + carry * lag;
            let found = report.carried.unwrap();
            close(setting, found.threshold, threshold);
            close(setting, found.lag, lag);
        }
    }
}

fn alpha_seq() {
    for (setting, left) in [("0", 4), ("0.2", 4), ("0.25", 3), ("0.5", 2), ("0.9", 1)] {
        let report = first(&[&format!("select.alpha_seq={setting}"), "select.probe_stride=4"]);
        assert_eq!(
            (report.sums.sequences, report.sums.valid, report.sums.tokens),
            ((4, left), 16 * left, 64),
            "{setting}"
        );
        assert_eq!(report.sums.kept, 8 * left);
    }
}

fn deep() -> Gpt2 {
    let config = Gpt2Config { initializer_range: 0.2, ..Gpt2Config::new(320, CONTEXT, 16, 3, 2) };
    Gpt2::scratch(config, 1, &Device::Cpu).unwrap()
}

/// A step of the early exit that keeps one sequence of eight, three blocks deep, against the same by
/// hand: after so many blocks, at every so many positions, by the mean of a statistic. Returns
/// which sequence it is.
fn phase_one(
    settings: &[&str],
    exit_layer: usize,
    stride: usize,
    score: impl Fn(usize, &Stats) -> f64,
) -> usize {
    const BEGUN: usize = 8;
    let settings =
        [&["data.rows=8", "machine.micro_rows=8", "select.alpha_seq=0.85"][..], settings].concat();
    let student = deep();
    let batch = batch(0, BEGUN);
    let stats = |model: &Gpt2| {
        let logits = model.logits(model.forward(&batch.inputs, CONTEXT).unwrap());
        scan(&logits, None, &batch.targets, 1.0).unwrap()
    };
    let blocks: Vec<usize> = (0..exit_layer).collect();
    let early = stats(&Gpt2::from_layers(&student, &blocks).unwrap());
    let probes = CONTEXT / stride;
    let mean = |s: usize| {
        let probed = (1..=probes).map(|j| s * CONTEXT + j * stride - 1);
        probed.map(|i| score(i, &early[i].student)).sum::<f64>() / probes as f64
    };
    let best = (0..BEGUN).max_by(|&a, &b| mean(a).total_cmp(&mean(b))).unwrap();
    let late = stats(&student);
    let nll: f64 = late[best * CONTEXT..][..CONTEXT].iter().map(|s| f64::from(s.student.nll)).sum();

    let mut trainer = trainer_of(plan(&settings), student, model(24, 3, 2));
    let report = trainer.step(0, 0, &batch).unwrap();
    assert_eq!(report.sums.sequences, (8, 2), "{settings:?}");
    // Two go on, of which the best is one: by its losses in the report's sum.
    let others = (0..BEGUN).filter(|&s| s != best);
    let second = others.max_by(|&a, &b| mean(a).total_cmp(&mean(b))).unwrap();
    let other: f64 =
        late[second * CONTEXT..][..CONTEXT].iter().map(|s| f64::from(s.student.nll)).sum();
    close(&format!("{settings:?}"), report.sums.nll, nll + other);
    // Six sequences went through the first blocks for the probe alone.
    let config = &trainer.student.config;
    let began = blocks_forward(config, exit_layer as u64, 6, CONTEXT as u64);
    let scoring = began + head_forward(config, (BEGUN * probes) as u64) + head_forward(config, 16);
    assert_eq!(report.sums.flops.scoring, scoring as f64, "{settings:?}");
    best * BEGUN + second
}

fn entropy(_: usize, s: &Stats) -> f64 {
    f64::from(s.entropy)
}

fn exit_layer() {
    let [one, two] = [1, 2].map(|layer| {
        phase_one(
            &[&format!("select.exit_layer={layer}"), "select.probe_stride=4"],
            layer,
            4,
            entropy,
        )
    });
    assert_ne!(one, two, "the data tell the two apart");
}

fn probe_stride() {
    let found = [1, 3, 16]
        .map(|stride| phase_one(&[&format!("select.probe_stride={stride}")], 1, stride, entropy));
    assert!(found[0] != found[1] && found[1] != found[2], "{found:?}");
}

fn probe_score() {
    let stride = "select.probe_stride=4";
    let by_entropy = phase_one(&[stride, "select.probe_score=entropy"], 1, 4, entropy);
    let by_loss = phase_one(&[stride, "select.probe_score=loss"], 1, 4, |_, s| f64::from(s.nll));
    let rng = Rng::new(3, Stream::Probe);
    let random = |i: usize, _: &Stats| f64::from(rng.uniform(0, i as u64));
    let by_chance = phase_one(&[stride, "select.probe_score=random"], 1, 4, random);
    assert!(by_entropy != by_loss && by_loss != by_chance, "{by_entropy} {by_loss} {by_chance}");
    // Another step of the run draws other numbers: they are the tokens'.
    let (_, report) = at(&["select.alpha_seq=0.5", "select.probe_score=random"], 0);
    assert_eq!(report.sums.sequences.1, 2);
}
