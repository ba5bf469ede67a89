//! `[machine]`: what costs something else, and gives the same numbers where it is no mathematics.

use super::{Here, Proofs, at, close, differs, first, reports};
use crate::laws::{CONTEXT, bits, largest_difference, model};
#[cfg(target_os = "linux")]
use crate::support::place::{Place, data, pretrain};
use candle_core::DType;
use eslm_kd::ErrorKind;
use eslm_kd::config::{Activations, DeviceSpec, Dtype};
use eslm_kd::cost::{
    head_backward, head_forward, trunk_again, trunk_backward_dense, trunk_backward_exact,
    trunk_backward_sparse,
};
use eslm_kd::ops::matmul::Bf16;
use eslm_kd::teacher::Teacher;
use eslm_kd::train::{StepReport, Trainer, session};

pub const KEYS: Proofs = &[
    ("machine.device", Here(device)),
    ("machine.dtype", Here(dtype)),
    ("machine.teacher_dtype", Here(teacher_dtype)),
    ("machine.micro_rows", Here(micro_rows)),
    ("machine.head", Here(head)),
    ("machine.activations", Here(activations)),
    ("machine.backward", Here(backward)),
    ("machine.rho", Here(rho)),
    ("machine.added_variance", Here(added_variance)),
    ("machine.groups", Here(groups)),
    ("machine.threads", Here(threads)),
];

fn device() {
    assert!(session::device(DeviceSpec::Cpu).unwrap().is_cpu());
    if !candle_core::utils::cuda_is_available() {
        assert!(session::device(DeviceSpec::Auto).unwrap().is_cpu());
        let refused = session::device(DeviceSpec::Cuda(0)).unwrap_err();
        assert!(
            refused.kind() == ErrorKind::Usage && refused.to_string().contains("no CUDA"),
            "{refused}"
        );
    }
}

fn dtype() {
    let plain = first(&[]);
    if Bf16::detect().is_ok() {
        let rounded = first(&["machine.dtype=bf16"]);
        let off = (rounded.sums.nll / plain.sums.nll - 1.0).abs();
        assert!(off > 1e-7 && off < 1e-2, "factors of 8 bits move the loss a little: {off}");
        assert_eq!(rounded.sums.kept, plain.sums.kept);
    } else {
        let plan = crate::laws::plan(&["machine.dtype=bf16"]);
        let refused = Trainer::new(plan, model(16, 2, 1), None).unwrap_err();
        assert!(refused.to_string().contains("bf16"), "{refused}");
    }
}

fn teacher_dtype() {
    let settings =
        |word: &'static str| vec!["teacher=t", "objective.lambda=1", "select.alpha=0", word];
    let (full, half) =
        (settings("machine.teacher_dtype=f32"), settings("machine.teacher_dtype=bf16"));
    let stored = |settings: &[&str]| {
        let teacher = at(settings, 0).0.teacher.unwrap();
        (teacher.model().params.wte().dtype(), teacher.model().params.wpe().unwrap().dtype())
    };
    assert_eq!(
        (stored(&full), stored(&half)),
        ((DType::F32, DType::F32), (DType::BF16, DType::F32))
    );
    // The student learns from the rounded teacher.
    let rounded = Teacher::new(model(24, 3, 2), &model(16, 2, 1).config).unwrap();
    let rounded = rounded.working_at(eslm_kd::ops::matmul::Precision::F32, Dtype::Bf16).unwrap();
    let mut by_hand =
        Trainer::new(crate::laws::plan(&full), model(16, 2, 1), Some(rounded.clone())).unwrap();
    by_hand.teacher = Some(rounded);
    let want = by_hand.step(0, 0, &crate::laws::batch(0, 4)).unwrap();
    let got = first(&half);
    assert_eq!(got.sums.loss, want.sums.loss);
    differs(
        "a rounded teacher",
        got.sums.loss * 100.0,
        first(&full).sums.loss * 100.0 + got.sums.loss,
    );
    assert!(got.sums.loss != first(&full).sums.loss, "the teacher is stored in full");
}

fn micro_rows() {
    let of = |n: usize, pool: &str| first(&[&format!("machine.micro_rows={n}"), pool]);
    for n in [1, 2, 4] {
        assert_eq!(of(n, "select.pool=micro-batch").sums.pools, 4 / n);
        let (whole, cut) = (of(4, "select.pool=sequence"), of(n, "select.pool=sequence"));
        assert_eq!((cut.sums.kept, cut.sums.flops), (whole.sums.kept, whole.sums.flops));
        close("the loss", cut.sums.loss, whole.sums.loss);
        close("the gradient", cut.grad_norm, whole.grad_norm);
    }
    // Where nobody says, as many as fit: here all.
    let plan = eslm_kd::cost::settle(
        &model(16, 2, 1).config,
        &crate::laws::plan(&["machine.micro_rows=auto", "machine.head=auto"]),
    );
    assert_eq!(plan.machine.micro_rows.to_string(), "4");
    assert_eq!(plan.machine.head.name(), "keep", "logits of 64 positions are small");
}

/// The same numbers up to rounding; returns the FLOPs of the student's backward, there and here.
fn same_numbers(setting: &str, tolerance: f32) -> (f64, f64) {
    let ((a, plain), (b, other)) = (at(&[], 0), at(&[setting], 0));
    close(setting, other.sums.loss, plain.sums.loss);
    close(setting, other.grad_norm, plain.grad_norm);
    assert!(largest_difference(&a, &b) <= tolerance, "{setting}");
    (plain.sums.flops.student_backward, other.sums.flops.student_backward)
}

/// Sums of f32 tell their order: another number of groups is another tree. Which it is, and that
/// processes change no bit of it, is tested beside `Pile` and in `src/train/among_tests.rs`.
fn groups() {
    let of = |groups: usize| {
        let groups = format!("machine.groups={groups}");
        let norms = reports(&["method=clm", "machine.micro_rows=1", &groups], 8);
        norms.iter().map(|report| report.grad_norm).collect::<Vec<_>>()
    };
    let [in_order, one, two, four] = [0, 1, 2, 4].map(of);
    assert_eq!(in_order, one);
    for other in [two, four] {
        assert!(one != other);
        one.iter().zip(&other).for_each(|(one, other)| close("whatever the order", *other, *one));
    }
    let shape = model(16, 2, 1).config;
    let plan = |groups: &str| crate::laws::plan(&[groups, "machine.micro_rows=auto"]);
    let settled = eslm_kd::cost::settle(&shape, &plan("machine.groups=2"));
    assert_eq!(settled.machine.micro_rows.to_string(), "2", "a micro-batch lies within a group");
    let refused = eslm_kd::cost::check_fit(&shape, None, &plan("machine.groups=8"));
    assert!(refused.unwrap_err().to_string().contains("data.rows = 4 cannot be divided into 8"));
}

fn head() {
    let (keep, recompute) = same_numbers("machine.head=recompute", 1e-6);
    assert_eq!(recompute - keep, head_forward(&model(16, 2, 1).config, 32) as f64);
}

fn activations() {
    let of = |setting: &str| at(&[setting], 0).0.student.activations;
    assert_eq!(of("machine.activations=keep"), Activations::Keep);
    assert_eq!(of("machine.activations=recompute"), Activations::Recompute);
    let (keep, recompute) = same_numbers("machine.activations=recompute", 0.0);
    assert_eq!(recompute - keep, trunk_again(&model(16, 2, 1).config, 4, CONTEXT as u64) as f64);
}

fn backward() {
    let student = model(16, 2, 1).config;
    let trunk = |setting: &str| {
        first(&[setting]).sums.flops.student_backward - head_backward(&student, 32) as f64
    };
    assert_eq!(trunk("machine.backward=exact"), trunk_backward_exact(&student, 4, 16, 32) as f64);
    assert_eq!(trunk("machine.backward=dense"), trunk_backward_dense(&student, 4, 16) as f64);
    assert_eq!(trunk("machine.backward=sparse"), trunk_backward_sparse(&student, 4, 16, 32) as f64);
    same_numbers("machine.backward=dense", 1e-5);
    let exact = at(&[], 0).0;
    for setting in
        [&["machine.backward=sparse"][..], &["machine.backward=sampled", "machine.rho=0.5"]]
    {
        let (other, report) = at(setting, 0);
        close("the loss is the same", report.sums.loss, first(&[]).sums.loss);
        assert!(largest_difference(&exact, &other) > 1e-5, "{setting:?} is another gradient");
    }
    assert!(
        bits(&at(&["machine.backward=sampled", "machine.rho=1"], 0).0.student.params)
            == bits(&exact.student.params)
    );
}

/// Rows at the head and at the blocks, summed over some steps, as a share of all.
fn shares(settings: &[&str]) -> (f64, f64) {
    let settings = [&["select.alpha=0", "machine.backward=sampled"][..], settings].concat();
    let reports: Vec<StepReport> = reports(&settings, 12);
    let sum = |of: fn(&StepReport) -> u64| reports.iter().map(of).sum::<u64>() as f64;
    (
        sum(|r| r.sums.rows) / sum(|r| r.sums.valid),
        sum(|r| r.sums.block_rows.0) / sum(|r| r.sums.block_rows.1),
    )
}

fn rho() {
    // The sum of some hundred draws of a given mean: the scatter is far below a tenth.
    for rho in [0.25, 0.5, 0.75] {
        let (head, blocks) = shares(&[&format!("machine.rho={rho}")]);
        assert!((head - rho).abs() < 0.05, "{rho}: {head} at the head");
        // The last block can draw no more than the head left.
        assert!(blocks < rho + 0.05 && blocks > 0.75 * rho, "{rho}: {blocks} at the blocks");
    }
    assert_eq!(shares(&["machine.rho=1"]), (1.0, 1.0));
    let auto = shares(&["machine.rho=auto"]);
    assert!(
        auto.0 > 0.9 && auto.0 <= 1.0,
        "of rows that carry about the same, a tenth of variance spares few: {auto:?}"
    );
}

fn added_variance() {
    let found = ["0.01", "0.5", "2", "20"]
        .map(|share| shares(&[&format!("machine.added_variance={share}")]));
    assert_eq!(found[0], (1.0, 1.0), "not worth a draw");
    for pair in found.windows(2) {
        assert!(
            pair[0].0 > pair[1].0 && pair[0].1 > pair[1].1,
            "more variance, fewer rows: {found:?}"
        );
    }
    // Five draws share it: with norms all equal each would keep (1 + 20)^(-1/5) of its rows.
    assert!((0.35..0.62).contains(&found[3].0), "{found:?}");
    assert!(
        shares(&["machine.rho=0.5", "machine.added_variance=20"]) == shares(&["machine.rho=0.5"])
    );
}

/// Threads of a training process, the most that were seen.
#[cfg(target_os = "linux")]
fn count(threads: &str) -> usize {
    let place = Place::new();
    let data = data();
    let setting = format!("machine.threads={threads}");
    let args = pretrain(
        &data,
        &["--steps", "100000", "--out", "run", "--set", &setting, "--set", "eval.every=0"],
    );
    let mut command = place.command(&args);
    let silent = std::process::Stdio::null;
    let mut child = command.stdout(silent()).stderr(silent()).spawn().unwrap();
    let (metrics, tasks) = (place.path("run/metrics.jsonl"), format!("/proc/{}/task", child.id()));
    let trains = || std::fs::read(&metrics).is_ok_and(|bytes| bytes.len() > 2000);
    while !trains() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // The loader's thread comes and goes.
    let seen = (0..200).map(|_| std::fs::read_dir(&tasks).unwrap().count()).max();
    child.kill().unwrap();
    child.wait().unwrap();
    seen.unwrap()
}

#[cfg(target_os = "linux")]
fn threads() {
    let (two, seven) = (count("2"), count("7"));
    // The loader's thread may have been missed in one of them.
    assert!((4..=6).contains(&(seven.saturating_sub(two))), "{two} threads with 2, {seven} with 7");
}

#[cfg(not(target_os = "linux"))]
fn threads() {
    eprintln!("skipped: threads are counted on Linux");
}
