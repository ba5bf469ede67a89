//! The kernels for a GPU, run by the emulator, against those for the CPU.

use super::*;

/// Everything that a head says and does, as tensors: a scan, a loss on some of its rows, and one
/// fused pass; with the sparse signal, or a dense one.
fn whole_head(
    case: &Case,
    objective: Objective,
    keep: bool,
    precision: Precision,
    sparse: Option<&Signal>,
) -> Vec<Tensor> {
    let half = |t: &Tensor| t.to_dtype(precision.activations()).unwrap();
    let of = |hidden: &Tensor, weight: &Tensor| {
        Logits::new(half(hidden), weight.clone()).with_precision(precision)
    };
    let (s, t) = (of(&case.hidden, &case.weight), of(&case.t_hidden, &case.t_weight));
    let options = ScanOptions {
        tau: objective.temperature,
        reverse_kl: !matches!(sparse, Some(Signal::Sampled(_))),
        sparse_kl: true,
    };
    let t = sparse.is_none().then_some(t);
    let Scanned { mut stats, student: s, teacher } = scanned(s, t, &case.targets, options, keep);
    assert!(s.is_stored() == keep && teacher.as_ref().is_none_or(|t| t.is_stored() == keep));
    if let Some(sparse) = sparse {
        hear(&s, sparse, &mut stats, options).unwrap();
    }
    let rows: Vec<u32> = (0..case.targets.len() as u32).filter(|r| r % 3 != 1).collect();
    let (targets, weights): (Vec<u32>, Vec<f32>) =
        rows.iter().map(|&r| (case.targets[r as usize], case.weights[r as usize])).unzip();
    let picked: Vec<RowStats> = rows.iter().map(|&r| stats[r as usize]).collect();
    let signal = teacher.map_or_else(|| sparse.unwrap().clone(), Signal::Dense);
    let (s, signal) = (s.select(&rows).unwrap(), signal.select(&rows).unwrap());
    let dw = random(case.weight.dims(), 9);
    let out = loss(
        LossInput {
            student: &s,
            signal: Some(&signal),
            stats: &picked,
            targets: &targets,
            weights: &weights,
            objective,
        },
        &dw,
    )
    .unwrap();
    let s = of(&case.hidden, &case.weight);
    let t = Signal::Dense(of(&case.t_hidden, &case.t_weight));
    let t = sparse.unwrap_or(&t);
    let gaps: Vec<f32> =
        case.weights.iter().enumerate().map(|(i, w)| if i % 4 == 2 { 0.0 } else { *w }).collect();
    let fused_dw = random(case.weight.dims(), 9);
    let mut asked = |i: usize, _: &RowStats| Ok(gaps[i]);
    let weigh = if keep { Weigh::Known(&gaps) } else { Weigh::Asking(&mut asked) };
    let one = read(fused(case.pass(&s, Some(t), objective), weigh, &fused_dw).unwrap());
    let flat = |stats: &[RowStats]| {
        let of = |s: &Stats| [s.max, s.log_sum, s.log_sum_tau, s.nll, s.entropy, s.entropy_tau];
        let all = stats
            .iter()
            .flat_map(|s| [of(&s.student), of(&s.teacher)].concat().into_iter().chain([s.kl]));
        Tensor::new(all.collect::<Vec<f32>>(), &Device::Cpu).unwrap()
    };
    let reverse =
        Tensor::new(stats.iter().map(|s| s.reverse_kl).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    let sums = Tensor::new(&[out.sum as f32, one.sum as f32], &Device::Cpu).unwrap();
    vec![flat(&stats), reverse, flat(&one.stats), sums, out.d_hidden, dw, one.d_hidden, fused_dw]
}

#[test]
fn a_gpus_kernels_give_the_same() {
    // Blocks of rows are of 8 here, those of threads of 64, and columns are padded to 64: below, at
    // and above each.
    let dense = SignalKind::Dense;
    let mut cases: Vec<_> = OBJECTIVES
        .iter()
        .enumerate()
        .map(|(i, &objective)| ((3 + i % 2, 8, 70), objective, i % 2 == 0, dense))
        .collect();
    cases.extend([
        ((11, 12, 64), OBJECTIVES[1], true, dense),
        ((17, 5, 3), OBJECTIVES[6], false, dense),
        ((9, 8, 150), OBJECTIVES[1], true, SignalKind::TopK(5)),
        ((10, 8, 150), OBJECTIVES[6], false, SignalKind::TopK(149)),
        ((3, 8, 70), OBJECTIVES[5], false, SignalKind::TopK(70)),
        ((10, 8, 66), OBJECTIVES[1], true, SignalKind::Sampled(7)),
        ((9, 8, 70), OBJECTIVES[2], false, SignalKind::Sampled(50)),
        ((9, 8, 70), OBJECTIVES[0], true, SignalKind::Scores),
    ]);
    for (shape, objective, keep, kind) in cases {
        let case = case(shape);
        let signal = case.sparse(kind, objective.temperature);
        // A signal without draws has no divergence that could be asked for.
        if kind == SignalKind::Scores {
            let fuse = || {
                let (s, dw) = (case.student(), random(case.weight.dims(), 9));
                let pass = case.pass(&s, signal.as_ref(), objective);
                let one = read(fused(pass, Weigh::Known(&case.weights), &dw).unwrap());
                let of = |s: &RowStats| [s.student.nll, s.teacher.nll, s.teacher.entropy, s.kl];
                let said: Vec<f32> = one.stats.iter().flat_map(of).collect();
                vec![Tensor::new(said, &Device::Cpu).unwrap(), one.d_hidden, dw]
            };
            for (got, want) in emulated(fuse).iter().flatten().zip(&fuse()) {
                assert_close(got, want, 1e-5);
            }
            continue;
        }
        let run = || whole_head(&case, objective, keep, Precision::F32, signal.as_ref());
        let want = run();
        if let Some(got) = emulated(run) {
            for (got, want) in got.iter().zip(&want) {
                // As against the reference: a logit's rounding, times 1 / tau.
                assert_close(got, want, 1e-5 / f64::from(objective.temperature.min(1.0)));
            }
        }
    }
    // bf16 rounds hidden vectors, the head and the gradient of logits to 2^-9; logits here are up
    // to about 5.
    for (objective, kind) in
        [(OBJECTIVES[1], dense), (OBJECTIVES[6], dense), (OBJECTIVES[1], SignalKind::TopK(69))]
    {
        let case = case((11, 8, 70));
        let signal = case.sparse(kind, objective.temperature);
        let run = |precision| whole_head(&case, objective, true, precision, signal.as_ref());
        let want = run(Precision::F32);
        if let Some(got) = emulated(|| run(Precision::Mixed)) {
            for (got, want) in got.iter().zip(&want) {
                assert_close(got, want, 2e-2);
            }
        }
    }
}

#[test]
fn a_gpu_finds_the_same_largest_entries_whatever_the_ties() {
    // Two values only, so almost everything is a tie: ids must be the lowest.
    let hidden = Tensor::ones((10, 1), DType::F32, &Device::Cpu).unwrap();
    let weight: Vec<f32> = (0..150).map(|i| if i % 7 == 3 { 0.5 } else { -0.25 }).collect();
    let teacher = Logits::new(hidden, Tensor::from_vec(weight, (150, 1), &Device::Cpu).unwrap());
    let targets = [0u32; 10];
    for k in [1, 21, 22, 100, 149, 150] {
        let find = || {
            let kind = SignalKind::TopK(k);
            let Signal::TopK(top) = reduce(&teacher, &targets, kind, 1.0, 1, &[0; 10]).unwrap()
            else {
                panic!()
            };
            top
        };
        let want = find();
        for got in crate::ops::gpu::emulator::emulate(find).iter().flatten() {
            assert_eq!(got.ids, want.ids, "{k}");
            let close =
                |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a == b || (a - b).abs() < 1e-5);
            assert!(close(&got.logp, &want.logp) && close(&got.rest, &want.rest), "{k}");
        }
    }
}
