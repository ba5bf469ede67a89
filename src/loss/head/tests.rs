use super::*;
use crate::loss::Divergence;
use crate::loss::{Signal, SignalKind};
use crate::ops::testing::{assert_close, autograd, check_finite_differences, emulated, random};
use candle_core::{DType, Device};

mod gpu;
mod signals;

/// (rows, width, vocabulary): below, at and above a tile, and odd.
const SHAPES: [(usize, usize, usize); 4] = [(1, 4, 3), (7, 24, 101), (5, 8, 4096), (9, 16, 9001)];
const OBJECTIVES: [Objective; 12] = [
    Objective { lambda: 0.0, temperature: 1.0, divergence: Divergence::ForwardKl },
    Objective { lambda: 0.6, temperature: 2.0, divergence: Divergence::ForwardKl },
    Objective { lambda: 1.0, temperature: 1.0, divergence: Divergence::ForwardKl },
    Objective { lambda: 0.5, temperature: 0.05, divergence: Divergence::ForwardKl },
    Objective { lambda: 0.5, temperature: 20.0, divergence: Divergence::ForwardKl },
    Objective { lambda: 0.6, temperature: 2.0, divergence: Divergence::ReverseKl },
    Objective { lambda: 1.0, temperature: 1.0, divergence: Divergence::Jsd { beta: 0.3 } },
    Objective { lambda: 0.5, temperature: 0.05, divergence: Divergence::Jsd { beta: 0.9 } },
    Objective { lambda: 0.6, temperature: 2.0, divergence: Divergence::SkewKl { skew: 0.1 } },
    Objective { lambda: 0.7, temperature: 20.0, divergence: Divergence::SkewKl { skew: 0.0 } },
    Objective {
        lambda: 0.6,
        temperature: 0.5,
        divergence: Divergence::SkewReverseKl { skew: 0.4 },
    },
    Objective { lambda: 0.6, temperature: 2.0, divergence: Divergence::TotalVariation },
];

struct Case {
    hidden: Tensor,
    weight: Tensor,
    t_hidden: Tensor,
    t_weight: Tensor,
    targets: Vec<u32>,
    weights: Vec<f32>,
}

fn case((n, d, v): (usize, usize, usize)) -> Case {
    Case {
        hidden: random((n, d), 1),
        weight: (random((v, d), 2) * 0.5).unwrap(),
        t_hidden: random((n, d + 3), 3),
        t_weight: (random((v, d + 3), 4) * 0.5).unwrap(),
        targets: (0..n).map(|i| ((i * 7919) % v) as u32).collect(),
        weights: (0..n).map(|i| 0.5 + i as f32 * 0.25).collect(),
    }
}

impl Case {
    /// A pass over these rows.
    fn pass<'a>(
        &'a self,
        student: &'a Logits,
        signal: Option<&'a Signal>,
        objective: Objective,
    ) -> PassInput<'a> {
        PassInput {
            student,
            signal,
            targets: &self.targets,
            options: objective.temperature.into(),
            objective,
        }
    }

    /// The loss of all rows.
    fn loss<'a>(
        &'a self,
        student: &'a Logits,
        signal: Option<&'a Signal>,
        stats: &'a [RowStats],
        objective: Objective,
    ) -> LossInput<'a> {
        LossInput {
            student,
            signal,
            stats,
            targets: &self.targets,
            weights: &self.weights,
            objective,
        }
    }

    fn student(&self) -> Logits {
        Logits::new(self.hidden.clone(), self.weight.clone())
    }

    fn teacher(&self) -> Logits {
        Logits::new(self.t_hidden.clone(), self.t_weight.clone())
    }

    /// The teacher's sparse signal of this kind; none of the dense kind.
    fn sparse(&self, kind: SignalKind, tau: f32) -> Option<Signal> {
        let positions: Vec<u64> = (0..self.targets.len() as u64).collect();
        let of = || reduce(&self.teacher(), &self.targets, kind, tau, 5, &positions).unwrap();
        (kind != SignalKind::Dense).then(of)
    }

    fn in_f64(&self) -> Case {
        let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        Case {
            hidden: wide(&self.hidden),
            weight: wide(&self.weight),
            t_hidden: wide(&self.t_hidden),
            t_weight: wide(&self.t_weight),
            targets: self.targets.clone(),
            weights: self.weights.clone(),
        }
    }
}

fn assert_stats_close(got: &[RowStats], want: &[RowStats], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        let flat = |s: &RowStats| {
            let one =
                |s: &Stats| [s.max, s.log_sum, s.log_sum_tau, s.nll, s.entropy, s.entropy_tau];
            let mut all = [one(&s.student), one(&s.teacher)].concat();
            all.extend([s.kl, s.reverse_kl]);
            all
        };
        for (i, (g, w)) in flat(g).iter().zip(flat(w)).enumerate() {
            assert!((g - w).abs() <= tolerance * w.abs().max(1.0), "field {i}: got {g}, want {w}");
        }
    }
}

#[test]
fn scan_matches_the_reference_in_f64() {
    for shape in SHAPES {
        let case = case(shape);
        let wide = case.in_f64();
        for tau in [0.05, 1.0, 2.0, 20.0] {
            for reverse_kl in [false, true] {
                let options = ScanOptions { reverse_kl, ..tau.into() };
                let (s, t) = (wide.student(), wide.teacher());
                let want = reference::scan(&s, Some(&t), &case.targets, options).unwrap();
                let (s, t) = (case.student(), case.teacher());
                let got = scan(&s, Some(&t), &case.targets, options).unwrap();
                // Logits carry f32 rounding (1e-6 of values near 10) and a small tau multiplies it.
                assert_stats_close(&got, &want, 4e-6 / tau.min(1.0));
                assert_eq!(got.iter().any(|s| s.reverse_kl > 0.0), reverse_kl);
            }
        }
    }
}

#[test]
fn loss_and_gradients_match_autograd_of_the_reference() {
    for shape in SHAPES {
        for objective in OBJECTIVES {
            let case = case(shape);
            let (s, t) = (case.student(), Some(case.teacher()));
            let Scanned { stats, student: s, teacher } =
                scanned(s, t, &case.targets, objective.temperature, true);
            let t = teacher.unwrap();
            let dw = random(case.weight.dims(), 9);
            let start = dw.to_dtype(DType::F64).unwrap();
            let got = loss(case.loss(&s, Some(&Signal::Dense(t)), &stats, objective), &dw).unwrap();
            let wide = case.in_f64();
            let t_logits = reference::logits(&wide.t_hidden, &wide.t_weight).unwrap();
            let upstream = Tensor::new(case.weights.as_slice(), &Device::Cpu).unwrap();
            let (per_token, grads) = autograd(&[&case.hidden, &case.weight], &upstream, |v| {
                reference::per_token(
                    &reference::logits(&v[0], &v[1])?,
                    Some(&t_logits),
                    &case.targets,
                    objective,
                )
            });
            let want: f64 = per_token
                .to_vec1::<f64>()
                .unwrap()
                .iter()
                .zip(&case.weights)
                .map(|(l, w)| l * f64::from(*w))
                .sum();
            // At tau 0.05 a logit's rounding of 1e-6 is 2e-5 of the exponent.
            let tolerance = 1e-5 / f64::from(objective.temperature.min(1.0));
            assert!(
                (got.sum - want).abs() < tolerance * want.abs().max(1.0),
                "{} vs {want}",
                got.sum
            );
            assert_close(&got.d_hidden, &grads[0], tolerance);
            assert_close(&dw, &(start + &grads[1]).unwrap(), tolerance);
        }
    }
}

#[test]
fn keep_and_recompute_and_rows_give_the_same_bits() {
    for objective in [OBJECTIVES[1], OBJECTIVES[6], OBJECTIVES[8]] {
        bits_of_one_objective(objective);
    }
}

fn bits_of_one_objective(objective: Objective) {
    let case = case((70, 24, 9001));
    let rows: Vec<u32> = (0..70).filter(|i| i % 3 != 0).collect();
    let pick = |all: &[u32]| rows.iter().map(|&r| all[r as usize]).collect::<Vec<_>>();
    let run = |keep: bool, threads: usize| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let (s, t) = (case.student(), Some(case.teacher()));
            let Scanned { stats, student: s, teacher } =
                scanned(s, t, &case.targets, objective.temperature, keep);
            let t = teacher.unwrap();
            assert!(s.is_stored() == keep && t.is_stored() == keep);
            let (s, t) = (s.select(&rows).unwrap(), t.select(&rows).unwrap());
            let picked: Vec<RowStats> = rows.iter().map(|&r| stats[r as usize]).collect();
            let weights: Vec<f32> = rows.iter().map(|&r| case.weights[r as usize]).collect();
            let dw = case.weight.zeros_like().unwrap();
            let out = loss(
                LossInput {
                    student: &s,
                    signal: Some(&Signal::Dense(t)),
                    stats: &picked,
                    targets: &pick(&case.targets),
                    weights: &weights,
                    objective,
                },
                &dw,
            )
            .unwrap();
            (
                stats,
                out.sum.to_bits(),
                out.d_hidden.to_vec2::<f32>().unwrap(),
                dw.to_vec2::<f32>().unwrap(),
            )
        })
    };
    let first = run(true, 1);
    assert!(first == run(false, 1), "keep and recompute differ");
    assert!(first == run(true, 2) && first == run(false, 3), "thread counts differ");
}

#[test]
fn equal_distributions_have_no_divergence_and_no_distillation_gradient() {
    for objective in OBJECTIVES {
        nothing_to_learn(Objective { lambda: 1.0, temperature: 2.0, ..objective });
    }
}

fn nothing_to_learn(objective: Objective) {
    let case = case((6, 16, 5000));
    let (s, t) = (case.student(), case.student());
    let stats =
        scan(&s, Some(&t), &case.targets, ScanOptions { reverse_kl: true, ..2.0.into() }).unwrap();
    assert!(stats.iter().all(|s| s.kl == 0.0 && s.reverse_kl == 0.0));
    let dw = case.weight.zeros_like().unwrap();
    let out = loss(case.loss(&s, Some(&Signal::Dense(t)), &stats, objective), &dw).unwrap();
    assert_eq!(out.sum, 0.0);
    assert_close(&out.d_hidden, &case.hidden.zeros_like().unwrap(), 0.0);
    assert_close(&dw, &case.weight.zeros_like().unwrap(), 0.0);
}

#[test]
fn extreme_logits_stay_finite() {
    // hidden = identity makes the logits the columns of the weight.
    let eye = Tensor::eye(4, DType::F32, &Device::Cpu).unwrap();
    let rows = |r: [[f32; 5]; 4]| {
        Tensor::new(&r, &Device::Cpu).unwrap().t().unwrap().contiguous().unwrap()
    };
    let z = rows([[1e4, -1e4, 0.0, 1.0, 2.0], [0.0; 5], [-1e4; 5], [3.0, 1e4, 1e4, -1e4, 0.0]]);
    let t = rows([
        [-1e4, 1e4, 0.0, 1.0, 2.0],
        [1e4, 0.0, 0.0, 0.0, 0.0],
        [-1e4; 5],
        [-3.0, 0.5, 1e4, -1e4, 9.0],
    ]);
    let divergences = OBJECTIVES.iter().map(|m| m.divergence);
    for (divergence, tau) in divergences.flat_map(|d| [0.05, 1.0, 20.0].map(|tau| (d, tau))) {
        let objective = Objective { lambda: 0.5, temperature: tau, divergence };
        let (s, q) = (Logits::new(eye.clone(), z.clone()), Logits::new(eye.clone(), t.clone()));
        let targets = [1, 2, 3, 4];
        let options = ScanOptions { reverse_kl: true, ..tau.into() };
        let stats = scan(&s, Some(&q), &targets, options).unwrap();
        let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
        let (ws, wq) = (Logits::new(wide(&eye), wide(&z)), Logits::new(wide(&eye), wide(&t)));
        let want = reference::scan(&ws, Some(&wq), &targets, options).unwrap();
        assert_stats_close(&stats, &want, 1e-5);
        let dw = z.zeros_like().unwrap();
        let want_dw = wide(&dw);
        let out = loss(
            LossInput {
                student: &s,
                signal: Some(&Signal::Dense(q)),
                stats: &stats,
                targets: &targets,
                weights: &[1.0; 4],
                objective,
            },
            &dw,
        )
        .unwrap();
        let want = reference::loss(
            &ws,
            Some(&Signal::Dense(wq)),
            &targets,
            &[1.0; 4],
            objective,
            &want_dw,
        )
        .unwrap();
        assert!(out.sum.is_finite() && (out.sum - want.sum).abs() < 1e-5 * want.sum);
        assert_close(&out.d_hidden, &want.d_hidden, 1e-5);
        assert_close(&dw, &want_dw, 1e-5);
    }
}

#[test]
fn no_rows_is_no_error() {
    let case = case((4, 8, 50));
    for _keep in [true, false] {
        let s = case.student();
        let stats = scan(&s, None, &case.targets, 1.0).unwrap();
        let dw = case.weight.zeros_like().unwrap();
        let none = s.select(&[]).unwrap();
        let out = loss(
            LossInput {
                student: &none,
                signal: None,
                stats: &[],
                targets: &[],
                weights: &[],
                objective: OBJECTIVES[0],
            },
            &dw,
        )
        .unwrap();
        assert_eq!((out.sum, out.d_hidden.dims()), (0.0, [0usize, 8].as_slice()));
        assert_close(&dw, &case.weight.zeros_like().unwrap(), 0.0);
        assert_eq!(stats.len(), 4);
        let empty = Logits::new(none.hidden().clone(), case.weight.clone());
        assert!(scan(&empty, None, &[], 1.0).unwrap().is_empty());
    }
}

#[test]
fn the_reference_is_right_by_finite_differences() {
    let t = random((3, 7), 5).to_dtype(DType::F64).unwrap();
    for objective in OBJECTIVES {
        check_finite_differences(&[&random((3, 7), 4)], |v| {
            reference::per_token(&v[0], Some(&t), &[0, 6, 3], objective)
        });
    }
}

#[test]
fn mismatches_are_errors() {
    let case = case((4, 8, 50));
    let other = Logits::new(case.t_hidden.clone(), random((51, 11), 6));
    let message = scan(&case.student(), Some(&other), &case.targets, 1.0).unwrap_err().to_string();
    assert!(message.contains("50") && message.contains("51"), "{message}");
    assert!(
        scan(&case.student(), None, &[0, 1, 2, 50], 1.0).unwrap_err().to_string().contains("50")
    );
}

#[test]
fn cross_entropy_is_candles() {
    let case = case((7, 24, 101));
    let s = case.student();
    let stats = scan(&s, None, &case.targets, 1.0).unwrap();
    let dw = case.weight.zeros_like().unwrap();
    let ours = loss(
        LossInput {
            student: &s,
            signal: None,
            stats: &stats,
            targets: &case.targets,
            weights: &[1.0; 7],
            objective: OBJECTIVES[0],
        },
        &dw,
    )
    .unwrap()
    .sum / 7.0;
    let z = reference::logits(&case.hidden, &case.weight).unwrap();
    let targets = Tensor::new(case.targets.as_slice(), &Device::Cpu).unwrap();
    let theirs = candle_nn::loss::cross_entropy(&z, &targets).unwrap().to_scalar::<f32>().unwrap();
    assert!((ours - f64::from(theirs)).abs() < 2e-6, "{ours} vs {theirs}");
}

/// A [`Fused`] whose findings were read.
struct Done {
    stats: Vec<RowStats>,
    rows: Vec<u32>,
    weights: Vec<f32>,
    sum: f64,
    d_hidden: Tensor,
}

/// A scan, by which the logits are stored or not.
pub(super) fn scanned(
    student: Logits,
    teacher: Option<Logits>,
    targets: &[u32],
    options: impl Into<ScanOptions>,
    store: bool,
) -> Scanned {
    if store {
        return scan_and_store(student, teacher, targets, options).unwrap();
    }
    Scanned { stats: scan(&student, teacher.as_ref(), targets, options).unwrap(), student, teacher }
}

fn read(fused: Fused) -> Done {
    let Fused { found, rows, weights, d_hidden } = fused;
    let (stats, sum) = found.read().unwrap();
    Done { stats, rows, weights, sum, d_hidden }
}

/// What [`fused`] should find, by the two passes that it joins; a weight of 0 drops a row.
fn in_two_passes(
    case: &Case,
    with_teacher: bool,
    weights: &[f32],
    objective: Objective,
) -> (Done, Tensor) {
    let (s, t) = (case.student(), with_teacher.then(|| case.teacher()));
    let Scanned { stats, student: s, teacher: t } =
        scanned(s, t, &case.targets, objective.temperature, true);
    let rows: Vec<u32> =
        (0..weights.len() as u32).filter(|&r| weights[r as usize] != 0.0).collect();
    let picked: Vec<RowStats> = rows.iter().map(|&r| stats[r as usize]).collect();
    let targets: Vec<u32> = rows.iter().map(|&r| case.targets[r as usize]).collect();
    let weights: Vec<f32> = rows.iter().map(|&r| weights[r as usize]).collect();
    let dw = random(case.weight.dims(), 9);
    let t = t.map(|t| Signal::Dense(t.select(&rows).unwrap()));
    let out = loss(
        LossInput {
            student: &s.select(&rows).unwrap(),
            signal: t.as_ref(),
            stats: &picked,
            targets: &targets,
            weights: &weights,
            objective,
        },
        &dw,
    )
    .unwrap();
    (Done { stats, rows, weights, sum: out.sum, d_hidden: out.d_hidden }, dw)
}

/// The first row is dropped where any is, so that one shape keeps nothing at all.
fn weight_of(row: usize, keep_every: usize) -> f32 {
    let dropped = match keep_every {
        1 => false,
        7 => !row.is_multiple_of(7),
        5 => !row.is_multiple_of(3), // 86 a block: the second fills half a buffer, and there is more to come
        9 => true,
        _ => row.is_multiple_of(keep_every),
    };
    if dropped { 0.0 } else { 0.5 + row as f32 }
}

#[test]
fn one_fused_pass_is_scan_and_loss() {
    let plain = Objective { lambda: 0.0, ..OBJECTIVES[1] };
    // More than a block; with gaps; with so few rows a block that several wait to be multiplied
    // together.
    for (shape, keep_every) in [
        ((300, 24, 5003), 1),
        ((300, 24, 5003), 3),
        ((700, 8, 33), 7),
        ((900, 8, 33), 5),
        ((130, 8, 33), 2),
        ((1, 4, 3), 1),
        ((5, 4, 9), 9),
    ] {
        let case = case(shape);
        let weights: Vec<f32> = (0..shape.0).map(|row| weight_of(row, keep_every)).collect();
        for (objective, with_teacher) in [
            (plain, false),
            (plain, true),
            (OBJECTIVES[1], true),
            (OBJECTIVES[5], true),
            (OBJECTIVES[8], true),
        ] {
            let (want, want_dw) = in_two_passes(&case, with_teacher, &weights, objective);
            let run = |case: &Case, dw: &Tensor| {
                let (s, t) = (case.student(), with_teacher.then(|| Signal::Dense(case.teacher())));
                let mut seen = 0;
                let mut weigh = |row: usize, stats: &RowStats| {
                    assert_eq!(row, seen, "rows come in order");
                    assert!((stats.student.nll - want.stats[row].student.nll).abs() < 1e-5);
                    seen += 1;
                    Ok(weights[row])
                };
                let weigh = Weigh::Asking(&mut weigh);
                read(fused(case.pass(&s, t.as_ref(), objective), weigh, dw).unwrap())
            };
            let check = |got: &Done, dw: &Tensor| {
                assert_stats_close(&got.stats, &want.stats, 4e-6);
                assert_eq!((&got.rows, &got.weights), (&want.rows, &want.weights));
                assert!(
                    (got.sum - want.sum).abs() <= 1e-6 * want.sum.abs().max(1.0),
                    "{} vs {}",
                    got.sum,
                    want.sum
                );
                assert_eq!(got.d_hidden.dims(), want.d_hidden.dims());
                if !got.rows.is_empty() {
                    assert_close(
                        &got.d_hidden,
                        &want.d_hidden.to_dtype(got.d_hidden.dtype()).unwrap(),
                        1e-5,
                    );
                }
                assert_close(dw, &want_dw, 1e-5);
            };
            let dw = random(case.weight.dims(), 9);
            let got = run(&case, &dw);
            check(&got, &dw);
            for threads in [1, 3] {
                let other = random(case.weight.dims(), 9);
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let again = pool.install(|| run(&case, &other));
                assert!(
                    again.sum.to_bits() == got.sum.to_bits() && again.stats == got.stats,
                    "{threads} threads"
                );
                let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert!(
                    bits(&other) == bits(&dw) && bits(&again.d_hidden) == bits(&got.d_hidden),
                    "{threads} threads"
                );
            }
            let (s, t) = (case.student(), with_teacher.then(|| Signal::Dense(case.teacher())));
            let (known, other) = (Weigh::Known(&weights), random(case.weight.dims(), 9));
            let again = fused(case.pass(&s, t.as_ref(), objective), known, &other).unwrap();
            assert!(read(again).sum.to_bits() == got.sum.to_bits(), "weights known beforehand");
            let wide = case.in_f64();
            let dw = random(case.weight.dims(), 9).to_dtype(DType::F64).unwrap();
            check(&run(&wide, &dw), &dw);
        }
    }
}

#[test]
fn a_fused_pass_ends_with_the_error_of_its_caller() {
    let case = case((4, 8, 50));
    let dw = case.weight.zeros_like().unwrap();
    let mut weigh =
        |row: usize, _: &RowStats| if row == 2 { Err(Error::internal("row two")) } else { Ok(1.0) };
    let s = case.student();
    let of = |targets, objective| PassInput {
        student: &s,
        signal: None,
        targets,
        options: 1.0.into(),
        objective,
    };
    let pass = of(&case.targets, OBJECTIVES[0]);
    let failed = fused(pass, Weigh::Asking(&mut weigh), &dw).unwrap_err();
    assert!(failed.to_string().contains("row two"));
    let weigh = || Weigh::Known(&[1.0; 4]);
    assert!(fused(of(&case.targets, OBJECTIVES[2]), weigh(), &dw).is_err());
    assert!(fused(of(&case.targets[..3], OBJECTIVES[0]), weigh(), &dw).is_err());
}

#[test]
fn rounding_below_zero_is_no_divergence_and_a_nan_stays_one() {
    assert_eq!([-1e-9, 0.0, 0.25].map(cpu::not_negative), [0.0, 0.0, 0.25]);
    assert!(cpu::not_negative(f64::NAN).is_nan());
}
