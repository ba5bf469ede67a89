//! The model against PyTorch: logits, scores, losses and the gradient of every parameter; and
//! against itself, by another path (f64, off the fast kernels), by finite differences, by
//! micro-batches and by thread counts.

use crate::support::golden::{Golden, assert_gradients, assert_within, largest, values};
use candle_core::{DType, Device, Tensor};
use eslm_kd::loss::Divergence;
use eslm_kd::loss::Signal;
use eslm_kd::loss::head::{self, Logits, Objective, RowStats, ScanOptions, Weigh};
use eslm_kd::model::{Gpt2, Gpt2Config, ParamSet, ParamSpec};
use eslm_kd::ops::embed::scatter_add;
use eslm_kd::ops::matmul::{Precision, matmul};

const SHAPES: [&str; 2] = ["small", "odd"];
const PLAIN: Objective =
    Objective { lambda: 0.0, temperature: 1.0, divergence: Divergence::ForwardKl };
const DISTIL: Objective =
    Objective { lambda: 0.6, temperature: 2.0, divergence: Divergence::ForwardKl };

/// Student, teacher and a batch.
struct Case {
    student: Gpt2,
    teacher: Gpt2,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    context: usize,
}

/// How to get the same gradient.
#[derive(Debug, Clone, Copy)]
struct Way {
    /// Logits are stored between scan and loss.
    keep: bool,
    /// The backward gets the selected rows, rather than zeros for the others.
    sparse: bool,
    /// Scan and loss are one pass, as in plain training.
    fused: bool,
}

const WAYS: [Way; 5] = [
    Way { keep: true, sparse: true, fused: false },
    Way { keep: true, sparse: false, fused: false },
    Way { keep: false, sparse: true, fused: false },
    Way { keep: false, sparse: false, fused: false },
    Way { keep: false, sparse: true, fused: true },
];

impl Case {
    fn of(golden: &Golden) -> Self {
        Self {
            student: golden.model("student"),
            teacher: golden.model("teacher"),
            inputs: golden.ids("input_ids"),
            targets: golden.ids("targets"),
            context: golden.tensor("input_ids").dims()[1],
        }
    }

    /// Random models larger than the goldens': several vocabulary tiles, several query blocks,
    /// several tasks.
    fn large() -> Self {
        let scratch = |d: usize, seed| {
            let config =
                Gpt2Config { initializer_range: 0.1, ..Gpt2Config::new(5000, 80, d, 2, 3) };
            Gpt2::scratch(config, seed, &Device::Cpu).unwrap()
        };
        let ids = |step: u32| (0..210u32).map(|i| (i * step + i * i % 97) % 5000).collect();
        Self {
            student: scratch(48, 1),
            teacher: scratch(36, 2),
            inputs: ids(31),
            targets: ids(57),
            context: 70,
        }
    }

    fn in_f64(&self) -> Self {
        Self {
            student: wide(&self.student),
            teacher: wide(&self.teacher),
            inputs: self.inputs.clone(),
            targets: self.targets.clone(),
            context: self.context,
        }
    }

    fn stats(&self, temperature: f32) -> Vec<RowStats> {
        let s = Logits::new(
            self.student.forward(&self.inputs, self.context).unwrap(),
            self.student.params.wte().clone(),
        );
        let t = Logits::new(
            self.teacher.forward(&self.inputs, self.context).unwrap(),
            self.teacher.params.wte().clone(),
        );
        head::scan(&s, Some(&t), &self.targets, temperature).unwrap()
    }

    /// Sequences `from..to` alone.
    fn slice(&self, from: usize, to: usize) -> Self {
        let part = |all: &[u32]| all[from * self.context..to * self.context].to_vec();
        Self {
            student: self.student.clone(),
            teacher: self.teacher.clone(),
            inputs: part(&self.inputs),
            targets: part(&self.targets),
            context: self.context,
        }
    }

    /// Adds the gradient of the loss sum over `rows` to `grads`; returns the sum.
    fn accumulate(&self, rows: &[u32], objective: Objective, way: Way, grads: &ParamSet) -> f64 {
        let (hidden, tape) = self.student.forward_with_tape(&self.inputs, self.context).unwrap();
        let t_hidden = self.teacher.forward(&self.inputs, self.context).unwrap();
        let s = Logits::new(hidden, self.student.params.wte().clone());
        let t = Logits::new(t_hidden, self.teacher.params.wte().clone());
        if way.fused {
            let mut weigh =
                |row: usize, _: &RowStats| Ok(f32::from(u8::from(rows.contains(&(row as u32)))));
            let out = head::fused(
                head::PassInput {
                    student: &s,
                    signal: Some(&Signal::Dense(t)),
                    targets: &self.targets,
                    options: objective.temperature.into(),
                    objective,
                },
                Weigh::Asking(&mut weigh),
                grads.wte(),
            )
            .unwrap();
            assert_eq!(out.rows, rows);
            self.student.backward(tape, Some(rows), &out.d_hidden, grads).unwrap();
            return out.found.read().unwrap().1;
        }
        let (stats, s, t) = if way.keep {
            let done =
                head::scan_and_store(s, Some(t), &self.targets, objective.temperature).unwrap();
            (done.stats, done.student, done.teacher.unwrap())
        } else {
            (head::scan(&s, Some(&t), &self.targets, objective.temperature).unwrap(), s, t)
        };
        let (s, t) = (s.select(rows).unwrap(), t.select(rows).unwrap());
        let stats: Vec<RowStats> = rows.iter().map(|&r| stats[r as usize]).collect();
        let targets: Vec<u32> = rows.iter().map(|&r| self.targets[r as usize]).collect();
        let t = (objective.lambda != 0.0).then_some(Signal::Dense(t));
        let out = head::loss(
            head::LossInput {
                student: &s,
                signal: t.as_ref(),
                stats: &stats,
                targets: &targets,
                weights: &vec![1.0; rows.len()],
                objective,
            },
            grads.wte(),
        )
        .unwrap();
        if way.sparse {
            self.student.backward(tape, Some(rows), &out.d_hidden, grads).unwrap();
        } else {
            let width = self.student.config.n_embd;
            let dense =
                Tensor::zeros((self.inputs.len(), width), out.d_hidden.dtype(), &Device::Cpu)
                    .unwrap();
            scatter_add(&dense, &out.d_hidden, rows).unwrap();
            self.student.backward(tape, None, &dense, grads).unwrap();
        }
        out.sum
    }

    fn gradients(&self, rows: &[u32], objective: Objective, way: Way) -> (f64, ParamSet) {
        let params = &self.student.params;
        let grads = ParamSet::zeros(params.layout(), params.wte().dtype(), &Device::Cpu).unwrap();
        (self.accumulate(rows, objective, way, &grads), grads)
    }

    /// The loss sum alone, by the head's formulas: what finite differences differentiate.
    fn loss(&self, rows: &[u32], objective: Objective) -> f64 {
        let logits = |model: &Gpt2| {
            let hidden = model.forward(&self.inputs, self.context).unwrap();
            let index = Tensor::new(rows, &Device::Cpu).unwrap();
            head::reference::logits(&hidden.index_select(&index, 0).unwrap(), model.params.wte())
                .unwrap()
        };
        let targets: Vec<u32> = rows.iter().map(|&r| self.targets[r as usize]).collect();
        let (z, t) = (logits(&self.student), logits(&self.teacher));
        values(&head::reference::per_token(&z, Some(&t), &targets, objective).unwrap()).iter().sum()
    }
}

fn wide(model: &Gpt2) -> Gpt2 {
    let tensors = model.params.tensors().iter().map(|t| t.to_dtype(DType::F64).unwrap()).collect();
    Gpt2 { params: ParamSet::new(model.params.layout().clone(), tensors), ..model.clone() }
}

fn bits(grads: &ParamSet) -> Vec<Vec<f32>> {
    grads.tensors().iter().map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

/// Positions that count.
fn valid(golden: &Golden) -> Vec<u32> {
    let valid = golden.tensor("valid").flatten_all().unwrap().to_vec1::<u8>().unwrap();
    (0u32..).zip(valid).filter(|(_, v)| *v == 1).map(|(i, _)| i).collect()
}

#[test]
fn logits_match_pytorch() {
    for shape in SHAPES {
        let golden = Golden::open(shape);
        let case = Case::of(&golden);
        for (name, model) in [("logits", &case.student), ("teacher_logits", &case.teacher)] {
            let hidden = model.forward(&case.inputs, case.context).unwrap();
            let logits = matmul(&hidden, &model.params.wte().t().unwrap(), Precision::F32).unwrap();
            assert_within(
                &format!("{shape}: {name}"),
                &values(&logits),
                &golden.values(name),
                1e-5,
            );
            // The forward with a tape is the same computation.
            let (taped, _) = model.forward_with_tape(&case.inputs, case.context).unwrap();
            assert_eq!(taped.to_vec2::<f32>().unwrap(), hidden.to_vec2::<f32>().unwrap());
        }
    }
}

#[test]
fn scores_match_pytorch() {
    for shape in SHAPES {
        let golden = Golden::open(shape);
        let case = Case::of(&golden);
        let check = |stats: &[RowStats], name: &str, score: fn(&RowStats) -> f32| {
            let got: Vec<f64> = stats.iter().map(|s| f64::from(score(s))).collect();
            assert_within(&format!("{shape}: {name}"), &got, &golden.values(name), 1e-5);
        };
        for case in [&case, &case.in_f64()] {
            let stats = case.stats(1.0);
            check(&stats, "nll", |s| s.student.nll);
            check(&stats, "teacher_nll", |s| s.teacher.nll);
            check(&stats, "entropy", |s| s.student.entropy);
            check(&stats, "teacher_entropy", |s| s.teacher.entropy);
            check(&stats, "excess", |s| s.student.nll - s.teacher.nll);
            check(&stats, "kl", |s| s.kl);
            check(&case.stats(2.0), "kl_tau2", |s| s.kl);
        }
    }
}

#[test]
fn every_gradient_matches_pytorch_on_every_path() {
    for shape in SHAPES {
        let golden = Golden::open(shape);
        let case = Case::of(&golden);
        let (every, kept) = (valid(&golden), golden.ids("rows"));
        assert_eq!(kept.len(), every.len().div_ceil(2));
        for (name, objective, rows) in
            [("ce", PLAIN, &every), ("ce_kl", DISTIL, &every), ("ce_kl_rows", DISTIL, &kept)]
        {
            let want = golden.scalar(&format!("loss.{name}"));
            let want_grad = |parameter: &str| golden.values(&format!("grad.{name}.{parameter}"));
            let mut sparse = Vec::new();
            for way in WAYS {
                let what = format!("{shape}: {name}, {way:?}");
                let (loss, grads) = case.gradients(rows, objective, way);
                assert_within(&what, &[loss], &[want], 1e-6 * want.abs());
                assert_gradients(&what, &grads, want_grad, 2e-5);
                sparse.extend((way.sparse && !way.fused).then(|| bits(&grads)));
            }
            assert!(sparse[0] == sparse[1], "{shape}: {name}: a kept and a recomputed head differ");
        }
    }
}

#[test]
fn the_path_off_the_fast_kernels_matches_pytorch_and_the_fast_one() {
    for shape in SHAPES {
        let golden = Golden::open(shape);
        let case = Case::of(&golden);
        let reference = case.in_f64();
        let (every, kept) = (valid(&golden), golden.ids("rows"));
        for (name, objective, rows) in
            [("ce", PLAIN, &every), ("ce_kl", DISTIL, &every), ("ce_kl_rows", DISTIL, &kept)]
        {
            for sparse in [true, false] {
                let way = Way { keep: false, sparse, fused: false };
                let what = format!("{shape}: {name}, f64, {way:?}");
                let (loss, grads) = reference.gradients(rows, objective, way);
                let want = golden.scalar(&format!("loss.{name}"));
                // What is left: lambda is an f32, off by 2.4e-8, and the goldens' gradients are
                // stored in f32.
                assert_within(&what, &[loss], &[want], 1e-7 * want.abs());
                assert_gradients(
                    &what,
                    &grads,
                    |p| golden.values(&format!("grad.{name}.{p}")),
                    5e-7,
                );
                let fast = case.gradients(rows, objective, way).1;
                let wide = |p: &str| values(grads.named().find(|(n, _)| *n == p).unwrap().1);
                assert_gradients(&format!("{what} against f32"), &fast, wide, 1e-5);
            }
        }
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    const H: f64 = 1e-5; // truncation, H^2, and rounding, 1e-14 / H, are both far below the tolerance
    let golden = Golden::open("odd");
    let case = Case::of(&golden).in_f64();
    let rows = golden.ids("rows");
    let (loss, grads) =
        case.gradients(&rows, DISTIL, Way { keep: false, sparse: true, fused: false });
    assert_within("loss", &[loss], &[case.loss(&rows, DISTIL)], 1e-9);
    let layout = case.student.params.layout().clone();
    for (which, ParamSpec { name, shape, .. }) in layout.entries().iter().enumerate() {
        let gradient = values(&grads.tensors()[which]);
        let base = values(&case.student.params.tensors()[which]);
        let steepest = (0..base.len())
            .max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()))
            .unwrap();
        for entry in [steepest, base.len() / 2, (which * 7919) % base.len()] {
            let moved = |by: f64| {
                let mut data = base.clone();
                data[entry] += by;
                let mut tensors = case.student.params.tensors().to_vec();
                tensors[which] = Tensor::from_vec(data, shape.as_slice(), &Device::Cpu).unwrap();
                let params = ParamSet::new(layout.clone(), tensors);
                let student = Gpt2::new(case.student.config.clone(), params);
                Case { student, ..case.slice(0, 3) }.loss(&rows, DISTIL)
            };
            let slope = (moved(H) - moved(-H)) / (2.0 * H);
            assert_within(
                &format!("{name}[{entry}]"),
                &[gradient[entry]],
                &[slope],
                1e-6 * slope.abs().max(1.0),
            );
        }
    }
}

#[test]
fn micro_batches_add_up() {
    for case in [Case::of(&Golden::open("odd")), Case::large()] {
        let way = Way { keep: true, sparse: true, fused: false };
        let context = case.context as u32;
        let every: Vec<u32> = (0..case.inputs.len() as u32).filter(|r| r % 4 != 1).collect();
        let (whole_loss, whole) = case.gradients(&every, DISTIL, way);
        let grads = ParamSet::zeros(whole.layout(), DType::F32, &Device::Cpu).unwrap();
        let mut loss = 0.0;
        for (from, to) in [(0u32, 1u32), (1, 3)] {
            let part = case.slice(from as usize, to as usize);
            let inside = every.iter().filter(|r| (from * context..to * context).contains(r));
            let rows: Vec<u32> = inside.map(|r| r - from * context).collect();
            loss += part.accumulate(&rows, DISTIL, way, &grads);
        }
        assert_within("loss", &[loss], &[whole_loss], 1e-6 * whole_loss);
        let whole = |p: &str| values(whole.named().find(|(n, _)| *n == p).unwrap().1);
        assert_gradients("two micro-batches", &grads, whole, 1e-5);
    }
}

#[test]
fn a_micro_batch_that_selects_nothing_adds_nothing() {
    let case = Case::of(&Golden::open("odd"));
    for (case, dtype) in [(&case, DType::F32), (&case.in_f64(), DType::F64)] {
        for way in WAYS {
            let (loss, grads) = case.gradients(&[], DISTIL, way);
            assert_eq!((loss, grads.wte().dtype()), (0.0, dtype), "{way:?}");
            assert!(grads.tensors().iter().all(|t| largest(&values(t)) == 0.0), "{way:?}");
        }
    }
}

#[test]
fn thread_count_does_not_change_a_bit() {
    let case = Case::large();
    let rows: Vec<u32> = (0..210).filter(|r| r % 3 != 0).collect();
    for way in WAYS {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (loss, grads) = case.gradients(&rows, DISTIL, way);
                (loss.to_bits(), bits(&grads))
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(5), "{way:?}");
    }
}

#[test]
fn divergences_and_their_gradients_match_pytorch_at_every_extreme() {
    let golden = Golden::open("divergences");
    let (n, v) = golden.tensor("z").dims2().unwrap();
    let (z, t) = (golden.values("z"), golden.values("t"));
    let no_tv_gradient: Vec<usize> = serde_json::from_str(golden.metadata("tv_grad_skip")).unwrap();
    assert!(!no_tv_gradient.is_empty() && no_tv_gradient.len() < n);
    let targets = vec![0; n];
    for (word, divergence) in [
        ("kl", Divergence::ForwardKl),
        ("reverse_kl", Divergence::ReverseKl),
        ("jsd", Divergence::Jsd { beta: 0.5 }),
        ("skew_kl", Divergence::SkewKl { skew: 0.1 }),
        ("skew_reverse_kl", Divergence::SkewReverseKl { skew: 0.1 }),
        ("tv", Divergence::TotalVariation),
    ] {
        for (name, tau) in ["0.05", "1", "20"].iter().zip(golden.values("taus")) {
            let value = golden.values(&format!("{word}.{name}.value"));
            let grad = golden.values(&format!("{word}.{name}.grad"));
            let objective = Objective { lambda: 1.0, temperature: tau as f32, divergence };
            // hidden = identity: row i of the logits is column i of the weight.
            let eye = Tensor::eye(n, DType::F32, &Device::Cpu).unwrap();
            let d_weight = Tensor::zeros((v, n), DType::F32, &Device::Cpu).unwrap();
            let logits = |name: &str| {
                Logits::new(eye.clone(), golden.tensor(name).t().unwrap().contiguous().unwrap())
            };
            let (student, teacher) = (logits("z"), logits("t"));
            let options = ScanOptions { reverse_kl: true, ..(tau as f32).into() };
            let stats = head::scan(&student, Some(&teacher), &targets, options).unwrap();
            let signal = Signal::Dense(teacher);
            let out = head::loss(
                head::LossInput {
                    student: &student,
                    signal: Some(&signal),
                    stats: &stats,
                    targets: &targets,
                    weights: &vec![1.0; n],
                    objective,
                },
                &d_weight,
            )
            .unwrap();
            assert!(out.sum.is_finite() && values(&out.d_hidden).iter().all(|d| d.is_finite()));
            let got = values(&d_weight.t().unwrap());
            for row in 0..n {
                let range = row * v..(row + 1) * v;
                let top = largest(&z[range.clone()]).max(largest(&t[range.clone()]));
                let tolerance = 1e-6 * (1.0 + value[row]) + 0.5f64.powi(21) * top / tau;
                let what = format!("{word}, tau {name}, row {row}");
                // One row at a time, so that a small value is not measured against the sum of all.
                let only = |all: &Logits| all.select(&[row as u32]).unwrap();
                let Signal::Dense(teacher) = &signal else { unreachable!() };
                let scratch = Tensor::zeros((v, n), DType::F32, &Device::Cpu).unwrap();
                let signal = Signal::Dense(only(teacher));
                let alone = head::loss(
                    head::LossInput {
                        student: &only(&student),
                        signal: Some(&signal),
                        stats: &stats[row..=row],
                        targets: &[0],
                        weights: &[1.0],
                        objective,
                    },
                    &scratch,
                )
                .unwrap();
                assert_within(&what, &[alone.sum / (tau * tau)], &[value[row]], tolerance);
                match word {
                    "kl" => {
                        assert_within(&what, &[f64::from(stats[row].kl)], &[value[row]], tolerance)
                    }
                    "reverse_kl" => assert_within(
                        &what,
                        &[f64::from(stats[row].reverse_kl)],
                        &[value[row]],
                        tolerance,
                    ),
                    "tv" if no_tv_gradient.contains(&row) => continue,
                    _ => {}
                }
                let tolerance = 5e-6 * largest(&grad[range.clone()]).max(tau * value[row]).max(1.0);
                assert_within(
                    &format!("gradient of {what}"),
                    &got[range.clone()],
                    &grad[range],
                    tolerance,
                );
            }
        }
    }
}
