//! Laws of training as a whole, through the function that trains: what must be equal is, what must
//! not matter does not.

use crate::support::tiny;
use candle_core::Device;
use eslm_kd::ErrorKind;
use eslm_kd::config::Plan;
use eslm_kd::data::loader::{Batch, Loader};
use eslm_kd::data::prepare::DataDir;
use eslm_kd::loss::head::{self, Logits};
use eslm_kd::model::{Gpt2, Gpt2Config, ParamSet};
use eslm_kd::ops::buffer::with_mut;
use eslm_kd::select::{Ranking, ScoreContext, kept_of};
use eslm_kd::teacher::Teacher;
use eslm_kd::testing::lively_model;
pub use eslm_kd::testing::step_plan as plan;
use eslm_kd::train::{StepReport, Trainer};
use std::sync::OnceLock;

pub const CONTEXT: usize = 16;
pub const ROWS: usize = 4;

/// Scores, each with and without distillation, and the settings that ask for them.
pub const MATHEMATICS: [&[&str]; 21] = [
    &["select.score=entropy"],
    &["select.score=loss"],
    &["select.score=random"],
    &["select.score=kl", "teacher=t", "objective.lambda=0"],
    &["select.score=teacher-entropy", "teacher=t", "objective.lambda=0"],
    &["select.score=excess", "teacher=t", "objective.lambda=0"],
    &["select.score=entropy", "teacher=t", "objective.lambda=0.5"],
    &["select.score=loss", "teacher=t", "objective.lambda=0.5", "select.tail=low"],
    &["select.score=random", "teacher=t", "objective.lambda=0.5", "objective.temperature=2"],
    &["select.score=kl", "teacher=t", "objective.lambda=0.5", "objective.temperature=2"],
    &["select.score=teacher-entropy", "teacher=t", "objective.lambda=0.5"],
    &["select.score=excess", "teacher=t", "objective.lambda=0.5"],
    &["select.score=reverse-kl", "teacher=t", "objective.temperature=2"],
    &[
        "select.score=reverse-kl",
        "teacher=t",
        "objective.divergence=jsd",
        "objective.signal=top-k",
        "objective.top_k=9",
    ],
    &[
        "select.score=entropy",
        "teacher=t",
        "objective.divergence=jsd",
        "objective.beta=0.3",
        "objective.temperature=2",
    ],
    &["select.score=loss", "teacher=t", "objective.divergence=skew-reverse-kl"],
    &["select.score=random", "teacher=t", "objective.signal=sampled", "objective.samples=5"],
    &["select.score=entropy-kl", "teacher=t", "objective.lambda=0.5"],
    &["select.score=loss", "select.pool=carried", "select.threshold_ema=0.5"],
    &["select.score=entropy", "select.cvar_weight=0.5", "select.rest_rate=0.3"],
    &[
        "select.score=loss",
        "select.schedule=ada-eslm",
        "select.interval=1",
        "select.cvar_weight=0.25",
        "select.pool=carried",
    ],
];

/// A model whose predictions differ from token to token from the first step on.
pub fn model(width: usize, heads: usize, seed: u64) -> Gpt2 {
    lively_model(tiny::VOCAB, CONTEXT, width, heads, seed)
}

pub fn trainer_of(plan: Plan, student: Gpt2, teacher: Gpt2) -> Trainer {
    let teacher = plan.teacher.is_some().then(|| Teacher::new(teacher, &student.config).unwrap());
    Trainer::new(plan, student, teacher).unwrap()
}

pub fn trainer(settings: &[&str]) -> Trainer {
    trainer_of(plan(settings), model(16, 2, 1), model(24, 3, 2))
}

pub fn batch(step: u64, rows: usize) -> Batch {
    static DATA: OnceLock<DataDir> = OnceLock::new();
    let data = DATA.get_or_init(|| DataDir::open(&tiny::data()).unwrap());
    Loader::new(data.train.clone(), CONTEXT, 3).unwrap().batch(step * rows as u64, rows).unwrap()
}

pub fn step(trainer: &mut Trainer, step: u64) -> StepReport {
    let rows = trainer.plan.data.rows;
    trainer.step(step, step * rows as u64, &batch(step, rows)).unwrap()
}

pub fn flat(params: &ParamSet) -> Vec<f32> {
    params
        .tensors()
        .iter()
        .flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        .collect()
}

pub fn bits(params: &ParamSet) -> Vec<u32> {
    flat(params).into_iter().map(f32::to_bits).collect()
}

/// Everything that a trainer remembers.
fn state(trainer: &Trainer) -> (u64, Vec<u32>, Vec<u32>, Vec<u32>) {
    let state = &trainer.state;
    (state.step, bits(&trainer.student.params), bits(&state.m), bits(&state.v))
}

pub fn largest_difference(a: &Trainer, b: &Trainer) -> f32 {
    let (a, b) = (flat(&a.student.params), flat(&b.student.params));
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The trainer after three steps, with their losses.
fn trained(settings: &[&str]) -> (Trainer, Vec<f64>) {
    let mut trainer = trainer(settings);
    let losses = (0..3).map(|s| step(&mut trainer, s).sums.loss).collect();
    (trainer, losses)
}

#[test]
fn alpha_0_is_plain_training_bit_for_bit() {
    let machines = [&[][..], &["machine.micro_rows=2", "machine.head=recompute"]];
    for mathematics in MATHEMATICS {
        for pool in ["sequence", "micro-batch", "carried"] {
            // A mixture, Ada-ESLM (which has no alpha of 0) and entropy-kl without a pool are other
            // questions.
            let asks = |word: &str| mathematics.iter().any(|m| m.contains(word));
            if asks("ada-eslm") || (asks("entropy-kl") && pool == "carried") {
                continue;
            }
            let pool = format!("select.pool={pool}");
            for machine in machines {
                let eslm = [mathematics, &["select.alpha=0", &pool][..], machine].concat();
                let plain: Vec<&str> =
                    mathematics.iter().filter(|m| !m.starts_with("select.")).copied().collect();
                let clm = [&["method=clm"][..], &plain, machine].concat();
                let (mut a, mut b) = (trainer(&eslm), trainer(&clm));
                let before = bits(&a.student.params);
                for s in 0..3 {
                    let (x, y) = (step(&mut a, s), step(&mut b, s));
                    assert_eq!(
                        (x.sums.loss, x.sums.nll, x.sums.kept, x.sums.flops),
                        (y.sums.loss, y.sums.nll, y.sums.kept, y.sums.flops),
                        "{eslm:?}"
                    );
                    assert_eq!((x.sums.scores.len(), x.sums.kept, x.sums.valid), (0, 64, 64));
                }
                assert!(state(&a) == state(&b), "{eslm:?}");
                assert!(bits(&a.student.params) != before);
            }
        }
    }
}

#[test]
fn machine_settings_do_not_change_the_mathematics() {
    for mathematics in MATHEMATICS {
        let (reference, losses) = trained(mathematics);
        for (machine, tolerance) in [
            // The same bits wherever this was tried; a matrix library may differ with the number of
            // rows.
            (&["machine.head=recompute"][..], 1e-6),
            (&["machine.backward=dense"], 1e-5),
            (&["machine.activations=recompute"], 0.0),
            (&["machine.micro_rows=1"], 1e-5),
            (&["machine.micro_rows=2", "machine.head=recompute"], 1e-5),
            (&["machine.micro_rows=2", "machine.backward=dense"], 1e-5),
        ] {
            let (other, other_losses) = trained(&[mathematics, machine].concat());
            let difference = largest_difference(&reference, &other);
            assert!(difference <= tolerance, "{mathematics:?} with {machine:?}: {difference}");
            for (a, b) in losses.iter().zip(&other_losses) {
                assert!(
                    (a - b).abs() <= 1e-5 * a.abs().max(1.0),
                    "{mathematics:?} with {machine:?}: {a} {b}"
                );
            }
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for mathematics in MATHEMATICS {
        // Wide enough, and with enough rows, for every product and every loop over rows to be
        // shared out.
        let settings = [mathematics, &["data.rows=16", "machine.micro_rows=8"]].concat();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut trainer = trainer_of(plan(&settings), model(64, 2, 1), model(96, 3, 2));
                let losses: Vec<f64> = (0..2).map(|s| step(&mut trainer, s).sums.loss).collect();
                (losses, state(&trainer))
            })
        };
        let one = run(1);
        for threads in [2, 5] {
            assert!(
                run(threads) == one,
                "{mathematics:?}: {threads} threads give other bits than one"
            );
        }
    }
}

/// The positions that the trainer keeps at its next step.
fn kept_rows(trainer: &Trainer, batch: &Batch, first_sequence: u64) -> Vec<u32> {
    let plan = &trainer.plan;
    let hidden = trainer.student.forward(&batch.inputs, CONTEXT).unwrap();
    let logits = Logits::new(hidden, trainer.student.params.wte().clone());
    let stats = head::scan(&logits, None, &batch.targets, 1.0).unwrap();
    let numbers = ScoreContext::new(plan.seed, first_sequence);
    let ranking =
        Ranking::new(plan.select.score, plan.select.pool, &stats, batch, numbers).unwrap();
    ranking.cut(plan.select.alpha, plan.select.tail).rows
}

#[test]
fn targets_of_dropped_positions_change_nothing() {
    for machine in
        [&["machine.backward=exact"][..], &["machine.backward=dense"], &["machine.head=recompute"]]
    {
        for mathematics in [&["select.score=entropy"][..], &["select.score=random", "teacher=t"]] {
            let settings = [mathematics, machine].concat();
            let batch = batch(0, ROWS);
            let after = |batch: &Batch| {
                let mut trainer = trainer(&settings);
                trainer.step(0, 0, batch).unwrap();
                state(&trainer)
            };
            let kept = kept_rows(&trainer(&settings), &batch, 0);
            assert_eq!(kept.len(), 32);
            let mut other = batch.clone();
            for i in (0..64).filter(|i| !kept.contains(i)) {
                other.targets[i as usize] = (other.targets[i as usize] + 7) % tiny::VOCAB as u32;
            }
            let expected = after(&batch);
            assert!(after(&other) == expected, "{settings:?}");
            other.targets[kept[0] as usize] =
                (other.targets[kept[0] as usize] + 7) % tiny::VOCAB as u32;
            assert!(after(&other) != expected, "a kept target counts: {settings:?}");
        }
    }
}

#[test]
fn a_student_that_equals_its_teacher_stands_still() {
    for mathematics in [
        &["select.alpha=0"][..],
        &["select.score=entropy"],
        &["select.score=kl"],
        &["select.score=random"],
    ] {
        for more in
            [&["machine.head=keep"][..], &["machine.head=recompute"], &["objective.temperature=2"]]
        {
            let common =
                ["teacher=t", "objective.lambda=1", "optim.weight_decay=0", "optim.eps=1e-8"];
            let settings = [mathematics, more, &common].concat();
            let mut trainer = trainer_of(plan(&settings), model(16, 2, 1), model(16, 2, 1));
            let before = bits(&trainer.student.params);
            for s in 0..2 {
                let report = step(&mut trainer, s);
                assert_eq!((report.sums.loss, report.grad_norm), (0.0, 0.0), "{settings:?}");
            }
            assert!(bits(&trainer.student.params) == before, "{settings:?}");
        }
    }
}

/// Position 5 of every sequence, and with it all later ones, becomes NaN.
fn poison(model: &Gpt2) -> f32 {
    let place = 5 * model.config.n_embd + 3;
    with_mut(model.params.wpe().unwrap(), |wpe| std::mem::replace(&mut wpe[place], f32::NAN))
        .unwrap()
}

#[test]
fn what_is_not_finite_is_named_and_nothing_moves() {
    let both = ["teacher=t", "objective.lambda=0.5"];
    for (who, what, settings) in [
        ("student", "loss of the student", vec!["select.score=entropy"]),
        ("student", "loss of the student", vec!["method=clm"]),
        ("student", "loss of the student", [&both[..], &["select.score=teacher-entropy"]].concat()),
        ("teacher", "KL to the teacher", [&both[..], &["method=clm"]].concat()),
        (
            "teacher",
            "KL to the teacher",
            [&both[..], &["select.score=entropy", "select.alpha=0.1"]].concat(),
        ),
        (
            "teacher",
            "KL to the teacher",
            [&both[..], &["method=clm", "machine.head=recompute"]].concat(),
        ),
        ("teacher", "kl score", [&both[..], &["select.score=kl"]].concat()),
        ("teacher", "excess score", vec!["teacher=t", "objective.lambda=0", "select.score=excess"]),
    ] {
        let mut trainer = trainer(&[&settings[..], &["machine.micro_rows=2"]].concat());
        step(&mut trainer, 0);
        let healthy = trainer.student.params.wpe().unwrap().copy().unwrap();
        let teacher = trainer.teacher.as_ref().map(|t| t.model().clone());
        let poisoned = if who == "student" { &trainer.student } else { teacher.as_ref().unwrap() };
        let value = poison(poisoned);
        let before = state(&trainer);
        let batch = batch(1, ROWS);
        let failed = trainer.step(1, ROWS as u64, &batch).unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::NonFinite, "{settings:?}: {failed}");
        let place = format!("at sequence {}, position ", batch.sequence_ids[0]);
        let message = failed.to_string();
        for part in ["step 2:", what, "found NaN", &place] {
            assert!(message.contains(part), "{settings:?}: no {part:?} in {message}");
        }
        // Not always 5: a masked weight times NaN is NaN, so earlier positions of that sequence
        // break as well.
        let position: usize = message.split(&place).nth(1).unwrap().parse().unwrap();
        assert!(position < CONTEXT, "{message}");
        assert!(state(&trainer) == before, "{settings:?}");

        // Healed, it goes on as if nothing had happened: half a step's gradients are forgotten.
        let poisoned = if who == "student" { &trainer.student } else { teacher.as_ref().unwrap() };
        with_mut(poisoned.params.wpe().unwrap(), |wpe| wpe[5 * poisoned.config.n_embd + 3] = value)
            .unwrap();
        if who == "student" {
            assert_eq!(
                healthy.to_vec2::<f32>().unwrap(),
                trainer.student.params.wpe().unwrap().to_vec2::<f32>().unwrap()
            );
        }
        step(&mut trainer, 1);
        let mut undisturbed = self::trainer(&[&settings[..], &["machine.micro_rows=2"]].concat());
        step(&mut undisturbed, 0);
        step(&mut undisturbed, 1);
        assert!(state(&trainer) == state(&undisturbed), "{settings:?}");
    }
}

#[test]
fn an_error_in_a_later_micro_batch_leaves_no_gradient_behind() {
    let settings = ["machine.micro_rows=1"];
    let (mut trainer, _) = trained(&settings);
    let before = state(&trainer);
    let mut broken = batch(3, ROWS);
    broken.targets[40] = tiny::VOCAB as u32;
    let failed = trainer.step(3, 12, &broken).unwrap_err();
    assert!(failed.to_string().starts_with("step 4: target id 320"), "{failed}");
    assert!(state(&trainer) == before);
    let (mut undisturbed, _) = trained(&settings);
    step(&mut trainer, 3);
    step(&mut undisturbed, 3);
    assert!(state(&trainer) == state(&undisturbed));
}

#[test]
fn the_kept_share_follows_alpha_through_burn_in_and_ramp() {
    let settings = ["select.alpha=0.6", "select.burn_in=2", "select.ramp=3"];
    let mut trainer = trainer(&settings);
    let mut flops = Vec::new();
    for (s, alpha) in [0.0, 0.0, 0.0, 0.2, 0.4, 0.6, 0.6].into_iter().enumerate() {
        let report = step(&mut trainer, s as u64);
        assert!(
            (report.settings.alpha - alpha).abs() < 1e-12,
            "step {s}: {}",
            report.settings.alpha
        );
        // ceil((1 - alpha) 16) of each of the 4 sequences.
        let k = [16, 16, 16, 13, 10, 7, 7][s];
        assert_eq!(kept_of(alpha, CONTEXT), k);
        assert_eq!((report.sums.kept, report.sums.valid), (4 * k as u64, 64));
        assert_eq!(!report.sums.scores.is_empty(), alpha > 0.0);
        assert_eq!(report.sums.pools, if alpha > 0.0 { 4 } else { 0 });
        flops.push(report.sums.flops.total());
    }
    assert!(flops[0] == flops[1] && flops[1] == flops[2] && flops[5] == flops[6]);
    assert!(flops[2] > flops[3] && flops[3] > flops[4] && flops[4] > flops[5], "{flops:?}");
}

#[test]
fn a_backward_that_leaves_nothing_out_is_the_exact_one_bit_for_bit() {
    for (mode, more) in [
        (&["machine.backward=sparse"][..], "select.alpha=0"),
        (&["machine.backward=sampled", "machine.rho=1"], "select.alpha=0"),
        (&["machine.backward=sampled", "machine.rho=1"], "teacher=t"),
    ] {
        assert!(
            state(&trained(&[mode, &[more]].concat()).0) == state(&trained(&[more]).0),
            "{mode:?} {more}"
        );
    }
    for mode in [&["machine.backward=sparse"][..], &["machine.backward=sampled", "machine.rho=0.5"]]
    {
        assert!(state(&trained(mode).0) != state(&trained(&[]).0), "{mode:?} leaves rows out");
    }
}

#[test]
fn an_approximate_backward_depends_on_neither_micro_batches_nor_threads() {
    for mode in [
        &["machine.backward=sparse"][..],
        &["machine.backward=sparse", "teacher=t", "select.score=kl"],
        &["machine.backward=sampled", "select.alpha=0", "machine.added_variance=1"],
        &["machine.backward=sampled", "machine.rho=0.3", "select.cvar_weight=0.5"],
    ] {
        let (whole, _) = trained(mode);
        let (cut, _) = trained(&[mode, &["machine.micro_rows=1"]].concat());
        let difference = largest_difference(&whole, &cut);
        assert!(difference <= 1e-5, "{mode:?}: {difference}");
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                state(&trained(&[mode, &["data.rows=16", "machine.micro_rows=8"]].concat()).0)
            })
        };
        assert!(run(1) == run(3), "{mode:?}");
    }
}

#[test]
fn training_and_distillation_learn() {
    let settings = |more: &[&'static str]| {
        let common =
            ["data.rows=16", "machine.micro_rows=16", "optim.eps=1e-8", "select.alpha=0.25"];
        plan(&[&common[..], more].concat())
    };
    let narrow = |range: f64, width, heads, seed| {
        let config = Gpt2Config {
            initializer_range: range,
            ..Gpt2Config::new(tiny::VOCAB, CONTEXT, width, 2, heads)
        };
        Gpt2::scratch(config, seed, &Device::Cpu).unwrap()
    };
    let run =
        |trainer: &mut Trainer| -> Vec<StepReport> { (0..60).map(|s| step(trainer, s)).collect() };
    let mean_nll = |reports: &[StepReport]| {
        reports.iter().map(|r| r.sums.nll).sum::<f64>()
            / reports.iter().map(|r| r.sums.valid as f64).sum::<f64>()
    };
    let mut teacher =
        Trainer::new(settings(&["select.score=loss"]), narrow(0.02, 32, 2, 1), None).unwrap();
    let reports = run(&mut teacher);
    let (first, last) = (mean_nll(&reports[..3]), mean_nll(&reports[55..]));
    assert!(
        (first - (tiny::VOCAB as f64).ln()).abs() < 0.6,
        "an untrained model knows nothing: {first}"
    );
    assert!(last < first - 0.9, "full-token loss from {first} to {last} in 60 steps");

    let settings = settings(&["teacher=t", "objective.lambda=1", "select.score=kl"]);
    let mut student = trainer_of(settings, narrow(0.02, 16, 2, 5), teacher.student);
    let reports = run(&mut student);
    let kl = |r: &[StepReport]| {
        r.iter().map(|r| r.sums.loss).sum::<f64>()
            / r.iter().map(|r| r.sums.kept as f64).sum::<f64>()
    };
    let (first, last) = (kl(&reports[..3]), kl(&reports[55..]));
    assert!(
        first > 0.3 && last < 0.5 * first,
        "KL to the teacher from {first} to {last} in 60 steps"
    );
    assert!(
        mean_nll(&reports[55..]) < mean_nll(&reports[..3]) - 0.8,
        "what the teacher knows helps on the text"
    );
}
