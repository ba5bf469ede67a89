//! Laws of the selection family and of schedules: CVaR's gradient, the early exit, a threshold that
//! nothing passes.

use crate::laws::{ROWS, batch, bits, largest_difference, model, step, trainer};
use candle_core::{DType, Device, Tensor, Var};
use eslm_kd::config::{Pool, Tail};
use eslm_kd::cost::{
    flops_of_run, flops_per_step, head_backward, head_forward, trunk_backward_exact, trunk_forward,
};
use eslm_kd::loss::Objective;
use eslm_kd::loss::head::{self, Logits};
use eslm_kd::rng::{Rng, Stream};
use eslm_kd::select::{Carried, Selector};
use eslm_kd::train::StepReport;

/// Rockafellar and Uryasev (2000): CVaR is the minimum over t of t + E[max(L - t, 0)] / (1 -
/// alpha), at t = VaR. Its gradient there, by automatic differentiation, is the mean gradient of
/// the kept rows.
#[test]
fn the_gradient_of_kept_losses_is_that_of_cvar() {
    let (n, width, vocab) = (40usize, 6usize, 23usize);
    let rng = Rng::new(3, Stream::Init);
    let tensor = |sub: u32, rows: usize| {
        let data: Vec<f32> =
            (0..(rows * width) as u64).map(|i| rng.normal(sub, i) as f32).collect();
        Tensor::from_vec(data, (rows, width), &Device::Cpu).unwrap()
    };
    let (hidden, weight) = (tensor(0, n), tensor(1, vocab));
    let targets: Vec<u32> = (0..n as u32).map(|i| i * 7 % vocab as u32).collect();
    let objective = Objective { lambda: 0.0, temperature: 1.0, ..Objective::default() };
    for alpha in [0.1, 0.5, 0.75] {
        let logits = Logits::new(hidden.clone(), weight.clone());
        let stats = head::scan(&logits, None, &targets, 1.0).unwrap();
        let losses: Vec<f32> = stats.iter().map(|s| s.student.nll).collect();
        let selector = Selector { alpha, pool: Pool::MicroBatch, tail: Tail::High };
        let rows = selector.select(&losses, &vec![true; n], n).rows;
        let k = rows.len();
        assert_eq!(k as f64, (1.0 - alpha) * n as f64, "a whole number of rows");
        let picked: Vec<_> = rows.iter().map(|&r| stats[r as usize]).collect();
        let of_rows: Vec<u32> = rows.iter().map(|&r| targets[r as usize]).collect();
        let d_weight = Tensor::zeros((vocab, width), DType::F32, &Device::Cpu).unwrap();
        let kept = logits.select(&rows).unwrap();
        let ours = head::loss(
            head::LossInput {
                student: &kept,
                signal: None,
                stats: &picked,
                targets: &of_rows,
                weights: &vec![1.0; k],
                objective,
            },
            &d_weight,
        )
        .unwrap();

        // Any t between the k-th and the next loss is a minimiser; in between, the derivative of
        // max(L - t, 0) exists.
        let mut sorted = losses.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let t = f64::from(sorted[k - 1] + sorted[k]) / 2.0;
        let h = Var::from_tensor(&hidden.to_dtype(DType::F64).unwrap()).unwrap();
        let w = Var::from_tensor(&weight.to_dtype(DType::F64).unwrap()).unwrap();
        let z = head::reference::logits(h.as_tensor(), w.as_tensor()).unwrap();
        let l = head::reference::per_token(&z, None, &targets, objective).unwrap();
        let excess = (l - t).unwrap().relu().unwrap().mean_all().unwrap();
        let cvar = ((excess / (1.0 - alpha)).unwrap() + t).unwrap();
        let mean = ours.sum / k as f64;
        let value = cvar.to_scalar::<f64>().unwrap();
        assert!((value - mean).abs() < 1e-5, "{value} {mean}");
        let grads = cvar.backward().unwrap();
        let close = |ours: &Tensor, theirs: &Tensor| {
            let ours = (ours.to_dtype(DType::F64).unwrap() / k as f64).unwrap();
            let difference = (ours - theirs)
                .unwrap()
                .abs()
                .unwrap()
                .max_all()
                .unwrap()
                .to_scalar::<f64>()
                .unwrap();
            // Single precision against double, gradients of the order of 1 / k.
            assert!(difference < 1e-6, "alpha {alpha}: {difference}");
        };
        close(&d_weight, grads.get(w.as_tensor()).unwrap());
        let d_hidden = grads.get(h.as_tensor()).unwrap();
        close(
            &ours.d_hidden,
            &d_hidden
                .index_select(&Tensor::new(rows.as_slice(), &Device::Cpu).unwrap(), 0)
                .unwrap(),
        );
        let dropped: Vec<u32> = (0..n as u32).filter(|r| !rows.contains(r)).collect();
        let rest = d_hidden.index_select(&Tensor::new(dropped, &Device::Cpu).unwrap(), 0).unwrap();
        assert_eq!(rest.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap(), 0.0);
    }
}

/// The early exit: half of the sequences go on after the first block, judged on every fourth position.
const PHASE_ONE: [&str; 3] =
    ["select.alpha_seq=0.5", "select.probe_stride=4", "select.probe_score=loss"];

#[test]
fn phase_one_trains_on_the_sequences_it_keeps_as_if_they_were_all() {
    for more in [
        &["select.alpha=0"][..],
        &["select.score=entropy"],
        &["select.score=random", "teacher=t", "objective.lambda=0.5", "machine.head=recompute"],
        &["select.score=loss", "machine.backward=dense"],
    ] {
        let settings = [&PHASE_ONE[..], more].concat();
        let batch = batch(0, ROWS);
        let mut trainer = trainer(&settings);
        let report = trainer.step(0, 0, &batch).unwrap();
        assert_eq!(
            (report.sums.sequences, report.sums.valid, report.sums.tokens),
            ((4, 2), 32, 64),
            "{settings:?}"
        );
        // Which two went on is seen from the sequences alone: those whose step without the early exit is
        // the same.
        let same = |pair: [u32; 2]| {
            let mut plain =
                self::trainer(&[more, &["data.rows=2", "machine.micro_rows=2"]].concat());
            let other = plain.step(0, u64::from(pair[0]), &batch.pick(&pair)).unwrap();
            let consecutive = pair[1] == pair[0] + 1;
            let close =
                largest_difference(&trainer, &plain) < 1e-6 && other.sums.kept == report.sums.kept;
            (close, consecutive)
        };
        let pairs = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]].map(same);
        let random = more.contains(&"select.score=random");
        // Random scores go by a sequence's number in the run, which a pair with a gap cannot have
        // by itself.
        let found =
            pairs.iter().filter(|(close, consecutive)| *close && (*consecutive || !random)).count();
        assert!(found == 1 || random, "{settings:?}: {pairs:?}");
    }
}

#[test]
fn phase_one_reports_what_it_executed_and_obeys_the_burn_in() {
    let (student, teacher) = (model(16, 2, 1).config, model(24, 3, 2).config);
    for more in [
        &["select.alpha=0"][..],
        &["select.alpha=0.5"],
        &["teacher=t", "select.score=kl", "select.alpha=0.3"],
    ] {
        for machine in
            [&["machine.head=keep"][..], &["machine.head=recompute", "machine.backward=dense"]]
        {
            let settings =
                [&PHASE_ONE[..], more, machine, &["select.burn_in=1", "machine.micro_rows=2"]]
                    .concat();
            let mut trainer = trainer(&settings);
            let plan = trainer.plan.clone();
            let shape = plan.teacher.as_ref().map(|_| &teacher);
            for (s, sequences) in [(0, (4, 4)), (1, (4, 2))] {
                let report = step(&mut trainer, s);
                assert_eq!(report.sums.sequences, sequences, "{settings:?}");
                assert_eq!(
                    report.sums.flops,
                    flops_per_step(&student, shape, &plan, plan.level_at(s)),
                    "{settings:?}"
                );
            }
        }
    }
    // By hand: the first of two blocks for all, the second for half, four probes of each sequence.
    let settings = [&PHASE_ONE[..], &["select.alpha=0"]].concat();
    let flops = step(&mut trainer(&settings), 0).sums.flops;
    let half = |f: u64| f as f64 / 2.0;
    let trunk = trunk_forward(&student, 4, 16);
    assert_eq!(flops.student_forward, half(trunk) + head_forward(&student, 32) as f64);
    assert_eq!(flops.scoring, half(trunk) / 2.0 + head_forward(&student, 16) as f64);
    let backward = trunk_backward_exact(&student, 2, 16, 32) + head_backward(&student, 32);
    assert_eq!(flops.student_backward, backward as f64);
}

#[test]
fn a_micro_batch_may_keep_nothing() {
    let settings = [
        "select.score=loss",
        "select.pool=carried",
        "machine.micro_rows=1",
        "optim.weight_decay=0",
    ];
    let mut trainer = trainer(&settings);
    trainer.selection.carried = Some(Carried { threshold: f32::MAX, lag: 1.0 });
    let before = bits(&trainer.student.params);
    let report = step(&mut trainer, 0);
    assert_eq!(
        (report.sums.kept, report.sums.rows, report.sums.valid, report.sums.loss),
        (0, 0, 64, 0.0)
    );
    assert!(bits(&trainer.student.params) == before, "nothing was learned");
    // The threshold comes back into reach, and some micro-batches keep while others do not.
    let losses = {
        let mut losses = report.sums.scores.clone();
        losses.sort_by(f32::total_cmp);
        losses
    };
    trainer.selection.carried = Some(Carried { threshold: losses[63], lag: 1.0 });
    let report = step(&mut trainer, 0);
    assert_eq!((report.sums.kept, report.sums.rows), (1, 1));
    assert!(bits(&trainer.student.params) != before);
    assert!(report.carried.is_some_and(|c| c.error > 0.0 && c.lag == 1.0));
}

#[test]
fn a_teacher_whose_lambda_is_0_in_a_step_does_nothing_there() {
    for (from, to, silent) in [(0.0, 0.5, 0), (0.5, 0.0, 4)] {
        let (from, to) = (format!("objective.lambda={from}"), format!("objective.lambda_end={to}"));
        for machine in [
            &["machine.head=keep"][..],
            &["machine.head=recompute", "objective.divergence=reverse-kl"],
        ] {
            let settings = [&["teacher=t", "steps=5", &from, &to][..], machine].concat();
            let mut trainer = trainer(&settings);
            let plan = trainer.plan.clone();
            let reports: Vec<StepReport> = (0..5).map(|s| step(&mut trainer, s)).collect();
            let asked: Vec<bool> = reports.iter().map(|r| r.sums.flops.teacher > 0.0).collect();
            assert_eq!(asked, (0..5).map(|s| s != silent).collect::<Vec<_>>(), "{settings:?}");
            let lambdas: Vec<f64> = reports.iter().map(|r| r.settings.lambda).collect();
            assert_eq!((lambdas[silent as usize], lambdas[2]), (0.0, 0.25));
            let spent: f64 = reports.iter().map(|r| r.sums.flops.total()).sum();
            let forecast =
                flops_of_run(&trainer.student.config, Some(&model(24, 3, 2).config), &plan);
            assert!(
                (spent - forecast).abs() < 1e-9 * spent,
                "{settings:?}: {spent} spent, {forecast} forecast"
            );
        }
    }
}

/// A function of the caller's that says what a score of ours says trains as that score does; the
/// opposite keeps other rows.
#[test]
fn an_own_score_takes_the_place_of_the_plans() {
    let trained = |settings: &[&str], sign: Option<f32>| {
        let mut trainer = trainer(&[&["select.alpha=0.5"], settings].concat());
        if let Some(sign) = sign {
            trainer.score_with(move |stats| stats.iter().map(|s| sign * s.student.nll).collect());
        }
        let reports: Vec<StepReport> = (0..3).map(|s| step(&mut trainer, s)).collect();
        (bits(&trainer.student.params), reports[2].sums.kept_nll.to_bits())
    };
    let loss = trained(&["select.score=loss"], None);
    assert_eq!(trained(&["select.score=random"], Some(1.0)), loss);
    assert_ne!(trained(&["select.score=random"], Some(-1.0)), loss);
}
