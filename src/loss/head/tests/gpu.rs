//! The kernels for a GPU, run by the emulator, against those for the CPU.

use super::*;

/// Everything that a head says and does, as tensors: a scan, a loss on some of its rows, and one
/// fused pass.
fn whole_head(
    case: &Case,
    objective: Objective,
    keep: bool,
    precision: Precision,
    signal: SignalKind,
) -> Vec<Tensor> {
    let half = |t: &Tensor| t.to_dtype(precision.activations()).unwrap();
    let of = |hidden: &Tensor, weight: &Tensor| {
        Logits::new(half(hidden), weight.clone()).with_precision(precision)
    };
    let (s, t) = (of(&case.hidden, &case.weight), of(&case.t_hidden, &case.t_weight));
    let options = ScanOptions { tau: objective.temperature, reverse_kl: true };
    let Scanned { stats, student: s, teacher } = scanned(s, Some(t), &case.targets, options, keep);
    let t = teacher.unwrap();
    assert!(s.is_stored() == keep && t.is_stored() == keep);
    let rows: Vec<u32> = (0..case.targets.len() as u32).filter(|r| r % 3 != 1).collect();
    let (targets, weights): (Vec<u32>, Vec<f32>) =
        rows.iter().map(|&r| (case.targets[r as usize], case.weights[r as usize])).unzip();
    let picked: Vec<RowStats> = rows.iter().map(|&r| stats[r as usize]).collect();
    let tokens: Vec<u64> = rows.iter().map(|&r| u64::from(r)).collect();
    let (s, t) = (s.select(&rows).unwrap(), t.select(&rows).unwrap());
    let signal = signal.reduce(t, &picked, objective.temperature, 5, &tokens).unwrap();
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
    let (s, t) = (of(&case.hidden, &case.weight), of(&case.t_hidden, &case.t_weight));
    let gaps: Vec<f32> =
        case.weights.iter().enumerate().map(|(i, w)| if i % 4 == 2 { 0.0 } else { *w }).collect();
    let fused_dw = random(case.weight.dims(), 9);
    let mut asked = |i: usize, _: &RowStats| Ok(gaps[i]);
    let weigh = if keep { Weigh::Known(&gaps) } else { Weigh::Asking(&mut asked) };
    let one = read(fused(case.pass(&s, Some(&t), objective), weigh, &fused_dw).unwrap());
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
    ]);
    for (shape, objective, keep, signal) in cases {
        let case = case(shape);
        let want = whole_head(&case, objective, keep, Precision::F32, signal);
        if let Some(got) = emulated(|| whole_head(&case, objective, keep, Precision::F32, signal)) {
            for (got, want) in got.iter().zip(&want) {
                // As against the reference: a logit's rounding, times 1 / tau.
                assert_close(got, want, 1e-5 / f64::from(objective.temperature.min(1.0)));
            }
        }
    }
    // bf16 rounds hidden vectors, the head and the gradient of logits to 2^-9; logits here are up
    // to about 5.
    for (objective, signal) in
        [(OBJECTIVES[1], dense), (OBJECTIVES[6], dense), (OBJECTIVES[1], SignalKind::TopK(69))]
    {
        let case = case((11, 8, 70));
        let want = whole_head(&case, objective, true, Precision::F32, signal);
        if let Some(got) = emulated(|| whole_head(&case, objective, true, Precision::Mixed, signal))
        {
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
            let t = teacher.clone();
            let mut stats = scan(&t.clone(), Some(&t), &targets, 1.0).unwrap();
            stats.truncate(10);
            top_k(&teacher, &stats, 1.0, k).unwrap()
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
