//! Sparse signals: what is made of a teacher's logits, and what students learn from them.

use super::*;
use crate::loss::signal::{DrawnId, Said, Sampled, TopK};

const V: usize = 5003;
const DIVERGENCES: [Divergence; 6] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::Jsd { beta: 0.3 },
    Divergence::SkewKl { skew: 0.1 },
    Divergence::SkewReverseKl { skew: 0.1 },
    Divergence::TotalVariation,
];

fn objective(divergence: Divergence) -> Objective {
    Objective { lambda: 0.7, temperature: 2.0, divergence }
}

fn pair(dtype: DType, vocab: usize) -> (Logits, Logits) {
    let logits = |width: usize, tag| {
        let (hidden, weight) = (random((6, width), tag), random((vocab, width), tag + 1));
        Logits::new(hidden.to_dtype(dtype).unwrap(), weight.to_dtype(dtype).unwrap())
    };
    (logits(8, 1), logits(5, 3))
}

fn reduced(t: &Logits, targets: &[u32], kind: SignalKind, tau: f32, seed: u64) -> Signal {
    let positions: Vec<u64> = (0..targets.len() as u64).map(|i| 4 + 3 * i).collect();
    reduce(t, targets, kind, tau, seed, &positions).unwrap()
}

/// Loss and gradients (the last with respect to the head) with a signal of some kind.
fn taught(
    dtype: DType,
    keep: bool,
    vocab: usize,
    kind: SignalKind,
    objective: Objective,
    seed: u64,
) -> (LossGradient, Tensor) {
    let (s, t) = pair(dtype, vocab);
    let targets = [0, 3, 1, 2, vocab as u32 - 1, 7];
    let Scanned { stats, student: s, teacher } =
        scanned(s, Some(t), &targets, objective.temperature, keep);
    let signal = match kind {
        SignalKind::Dense => Signal::Dense(teacher.unwrap()),
        // Of f32 always: a level or a draw at an edge may round to either side of it.
        kind => reduced(&pair(DType::F32, vocab).1, &targets, kind, objective.temperature, seed),
    };
    let d_weight = s.weight.zeros_like().unwrap();
    let weights = [1.0, 0.5, 2.0, 1.0, 1.0, 3.0];
    (
        loss(
            LossInput {
                student: &s,
                signal: Some(&signal),
                stats: &stats,
                targets: &targets,
                weights: &weights,
                objective,
            },
            &d_weight,
        )
        .unwrap(),
        d_weight,
    )
}

#[test]
fn the_whole_vocabulary_in_the_top_is_the_dense_signal() {
    for divergence in DIVERGENCES {
        let of = |kind| taught(DType::F32, false, 301, kind, objective(divergence), 1);
        let ((dense, dense_dw), (top, top_dw)) =
            (of(SignalKind::Dense), of(SignalKind::TopK(1000)));
        assert!(
            (dense.sum - top.sum).abs() < 1e-3 * dense.sum,
            "{divergence:?}: {} vs {}",
            top.sum,
            dense.sum
        );
        // But for the levels that its probabilities are rounded to. The slope of total variation
        // turns where p = q.
        let tolerance = if divergence == Divergence::TotalVariation { 3e-2 } else { 5e-3 };
        assert_close(&top.d_hidden, &dense.d_hidden, tolerance);
        assert_close(&top_dw, &dense_dw, tolerance);
    }
}

#[test]
fn buckets_never_tell_more_than_the_vocabulary() {
    for divergence in DIVERGENCES {
        let only = Objective { lambda: 1.0, ..objective(divergence) };
        let dense = taught(DType::F32, false, V, SignalKind::Dense, only, 1).0.sum;
        let mut before = 0.0;
        for k in [1, 16, 256, 4500] {
            let top = taught(DType::F32, false, V, SignalKind::TopK(k), only, 1).0.sum;
            assert!(
                before < top + 1e-4 && top < dense * (1.0 + 1e-5),
                "{divergence:?}, {k}: {top} of {dense}"
            );
            before = top;
        }
        assert!(before > 0.9 * dense, "{divergence:?}: nearly all ids tell nearly all");
    }
}

#[test]
fn fast_path_and_reference_agree_and_no_head_mode_or_thread_count_matters() {
    let kinds = [SignalKind::TopK(1), SignalKind::TopK(40), SignalKind::Sampled(50)];
    for (kind, divergence) in kinds.into_iter().flat_map(|kind| DIVERGENCES.map(|d| (kind, d))) {
        let objective = objective(divergence);
        if matches!(kind, SignalKind::Sampled(_)) && divergence != Divergence::ForwardKl {
            continue;
        }
        let (fast, fast_dw) = taught(DType::F32, true, V, kind, objective, 1);
        let (slow, slow_dw) = taught(DType::F64, false, V, kind, objective, 1);
        assert!(
            (fast.sum - slow.sum).abs() < 1e-5 * slow.sum.abs().max(1.0),
            "{kind:?} {objective:?}: {} {}",
            fast.sum,
            slow.sum
        );
        assert_close(&fast.d_hidden, &slow.d_hidden, 2e-5);
        assert_close(&fast_dw, &slow_dw, 2e-5);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let (other, other_dw) = pool.install(|| taught(DType::F32, false, V, kind, objective, 1));
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(
            other.sum.to_bits() == fast.sum.to_bits()
                && bits(&other.d_hidden) == bits(&fast.d_hidden)
        );
        assert!(bits(&other_dw) == bits(&fast_dw), "{kind:?}");
    }
}

#[test]
fn the_references_are_right_by_finite_differences() {
    let q = random((2, 9), 5);
    for divergence in DIVERGENCES {
        let objective = objective(divergence);
        let log_q = reference::log_softmax(&q, 2.0).unwrap().to_vec2::<f32>().unwrap();
        let ids = vec![1, 4, 8, 0, 2, 3];
        let logp: Vec<f32> =
            ids.iter().enumerate().map(|(i, &id)| log_q[i / 3][id as usize]).collect();
        let rest =
            logp.chunks(3).map(|l| (1.0 - l.iter().map(|l| l.exp()).sum::<f32>()).ln()).collect();
        let said = vec![Said::default(); 2];
        let signal = Signal::TopK(TopK { k: 3, ids, logp, rest, said });
        check_finite_differences(&[&random((2, 9), 6)], |z| {
            reference::per_token_sparse(&z[0], &signal, &[2, 4], objective)
        });
    }
}

/// The mean over many seeds against the dense gradient, in standard errors of the mean.
#[test]
fn a_sample_is_right_on_average() {
    const SEEDS: u64 = 400;
    let objective = objective(Divergence::ForwardKl);
    let flat = |(out, dw): (LossGradient, Tensor)| -> Vec<f64> {
        let all = [&out.d_hidden, &dw].map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        std::iter::once(out.sum).chain(all.concat().into_iter().map(f64::from)).collect()
    };
    let want = flat(taught(DType::F32, false, 33, SignalKind::Dense, objective, 0));
    let (mut sum, mut square) = (vec![0.0; want.len()], vec![0.0; want.len()]);
    for seed in 0..SEEDS {
        for (i, x) in flat(taught(DType::F32, false, 33, SignalKind::Sampled(4), objective, seed))
            .into_iter()
            .enumerate()
        {
            sum[i] += x;
            square[i] += x * x;
        }
    }
    let n = SEEDS as f64;
    let mut chi = 0.0;
    for ((sum, square), want) in sum.iter().zip(&square).zip(&want) {
        let (mean, variance) = (sum / n, (square / n - (sum / n).powi(2)).max(1e-12));
        let z = (mean - want) / (variance / n).sqrt();
        assert!(z.abs() < 5.0, "{z} standard errors from {want}");
        chi += z * z;
    }
    let mean_square = chi / want.len() as f64;
    assert!((0.5..1.7).contains(&mean_square), "mean square of the z values: {mean_square}");
}

#[test]
fn the_top_is_the_top_and_its_levels_are_those_of_its_probabilities() {
    let (_, t) = pair(DType::F32, V);
    let Signal::TopK(top) = reduced(&t, &[0; 6], SignalKind::TopK(7), 2.0, 1) else { panic!() };
    let stats = scan(&t, None, &[0; 6], 2.0).unwrap();
    for (i, row) in reference::host_rows(&t).unwrap().iter().enumerate() {
        let mut order: Vec<u32> = (0..V as u32).collect();
        order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
        order.truncate(7);
        order.sort_unstable();
        assert_eq!(top.ids[i * 7..][..7], order);
        let s = stats[i].student;
        for (id, log_q) in order.iter().zip(&top.logp[i * 7..]) {
            let want = (row[*id as usize] - s.max) / 2.0 - s.log_sum_tau;
            let (q, want) = (f64::from(*log_q).exp(), f64::from(want).exp());
            assert!((q - want).abs() <= want.sqrt() / 1023.0 + 1e-6, "{q} of {want}");
        }
        let inside: f64 = top.logp[i * 7..][..7].iter().map(|l| f64::from(*l).exp()).sum();
        assert!((inside + f64::from(top.rest[i]).exp() - 1.0).abs() < 1e-5);
    }
}

#[test]
fn a_rows_signal_is_its_own_whatever_stands_beside_it() {
    // More than a block, and two of unequal size; more than a tile.
    let case = case((300, 40, V));
    let (t, n) = (case.teacher(), case.targets.len());
    let positions: Vec<u64> = (0..n as u64).map(|i| 1_000_000 - 7 * i).collect();
    for tau in [1.0, 2.0] {
        let stats = scan(&t, None, &case.targets, tau).unwrap();
        for kind in [SignalKind::TopK(7), SignalKind::Sampled(9), SignalKind::Scores] {
            let of = |rows: &[u32], t: &Logits, threads: usize| {
                let targets: Vec<u32> = rows.iter().map(|&r| case.targets[r as usize]).collect();
                let positions: Vec<u64> = rows.iter().map(|&r| positions[r as usize]).collect();
                let t = t.select(rows).unwrap();
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| reduce(&t, &targets, kind, tau, 3, &positions).unwrap())
            };
            let all: Vec<u32> = (0..n as u32).collect();
            let whole = of(&all, &t, 1);
            assert_eq!(whole.rows(), n);
            let some: Vec<u32> = (0..n as u32).filter(|r| r % 3 == 1).rev().collect();
            for (rows, threads) in
                [(&all[..], 3), (&some, 2), (&all[7..8], 1), (&all[290..293], 2), (&all[..17], 2)]
            {
                let want = whole.select(rows).unwrap();
                let got = of(rows, &t, threads);
                assert!(same(&got, &want), "{kind:?} at {tau}, {} rows", rows.len());
            }
            for (i, s) in stats.iter().enumerate() {
                let said = whole.said(i).unwrap();
                let want = Said::of(&RowStats { teacher: s.student, ..RowStats::default() });
                let close = |a: f32, b: f32| (a - b).abs() <= b.abs() / 1000.0 + 1e-6;
                assert!(
                    close(said.nll, want.nll)
                        && close(said.entropy, want.entropy)
                        && close(said.entropy_tau, want.entropy_tau),
                    "{said:?} {want:?}"
                );
                if tau == 1.0 {
                    assert_eq!(said.entropy, said.entropy_tau);
                }
            }
            if let Signal::Sampled(sampled) = &whole {
                let drawn = |i| sampled.row(i).iter().map(|d| d.count).sum::<u32>();
                assert!((0..n).all(|i| drawn(i) == sampled.draws));
            }
        }
    }
    let moved = |position| {
        let (t, kind) = (t.select(&[2]).unwrap(), SignalKind::Sampled(9));
        reduce(&t, &case.targets[2..3], kind, 1.0, 3, &[position]).unwrap()
    };
    assert!(!same(&moved(5), &moved(6)), "draws belong to a position");
    let refused = reduce(&t, &case.targets, SignalKind::Scores, 1.0, 3, &[0]).unwrap_err();
    assert!(refused.to_string().contains("300 rows"), "{refused}");
}

fn same(a: &Signal, b: &Signal) -> bool {
    match (a, b) {
        (Signal::TopK(a), Signal::TopK(b)) => a == b,
        (Signal::Sampled(a), Signal::Sampled(b)) => a == b,
        _ => false,
    }
}

#[test]
fn every_backend_makes_the_same_signal() {
    let case = case((9, 8, 700));
    for kind in [SignalKind::TopK(5), SignalKind::Sampled(20), SignalKind::Scores] {
        let of = |case: &Case| case.sparse(kind, 2.0).unwrap();
        let want = of(&case);
        let by_reference = of(&case.in_f64());
        assert_eq!(by_reference.rows(), 9);
        let ids = |signal: &Signal| (0..9).map(|i| signal.ids(i)).collect::<Vec<_>>();
        assert_eq!(ids(&by_reference), ids(&want));
        for emulated in crate::ops::gpu::emulator::emulate(|| of(&case)).iter().flatten() {
            assert_eq!(ids(emulated), ids(&want));
            if let (Signal::Sampled(a), Signal::Sampled(b)) = (emulated, &want) {
                assert_eq!((&a.starts, &a.drawn), (&b.starts, &b.drawn));
            }
            assert!((0..9).all(|i| {
                let (a, b) = (emulated.said(i).unwrap(), want.said(i).unwrap());
                (a.nll - b.nll).abs() <= b.nll / 1000.0
                    && (a.entropy_tau - b.entropy_tau).abs() <= b.entropy_tau / 1000.0
            }));
        }
    }
}

/// What scan, [`hear`] and [`loss`] find, by rows of weight other than 0.
fn in_two(case: &Case, signal: &Signal, weights: &[f32], pass: PassInput<'_>) -> (Done, Tensor) {
    let PassInput { student: s, options, objective, .. } = pass;
    let mut stats = scan(s, None, &case.targets, options).unwrap();
    hear(s, signal, &mut stats, ScanOptions { sparse_kl: true, ..options }).unwrap();
    let rows: Vec<u32> =
        (0..weights.len() as u32).filter(|&r| weights[r as usize] != 0.0).collect();
    let of = |r: &u32| *r as usize;
    let picked: Vec<RowStats> = rows.iter().map(|r| stats[of(r)]).collect();
    let targets: Vec<u32> = rows.iter().map(|r| case.targets[of(r)]).collect();
    let weights: Vec<f32> = rows.iter().map(|r| weights[of(r)]).collect();
    let dw = random(case.weight.dims(), 9).to_dtype(case.weight.dtype()).unwrap();
    let chosen = LossInput {
        student: &s.select(&rows).unwrap(),
        signal: Some(&signal.select(&rows).unwrap()),
        stats: &picked,
        targets: &targets,
        weights: &weights,
        objective,
    };
    let out = loss(chosen, &dw).unwrap();
    (Done { stats, rows, weights, sum: out.sum, d_hidden: out.d_hidden }, dw)
}

#[test]
fn one_pass_with_a_sparse_signal_is_two() {
    let case = case((300, 24, V));
    let wide = case.in_f64();
    let weights: Vec<f32> = (0..300).map(|row| weight_of(row, 3)).collect();
    let taus = [1.0, 2.0];
    let kinds = [SignalKind::TopK(1), SignalKind::TopK(30), SignalKind::Sampled(50)];
    for (kind, tau) in kinds.into_iter().flat_map(|kind| taus.map(|tau| (kind, tau))) {
        let signal = case.sparse(kind, tau).unwrap();
        for divergence in DIVERGENCES {
            let sampled = matches!(kind, SignalKind::Sampled(_));
            if sampled && divergence != Divergence::ForwardKl {
                continue;
            }
            let objective = Objective { lambda: 0.7, temperature: tau, divergence };
            let options =
                ScanOptions { tau, reverse_kl: !sampled, sparse_kl: objective.lambda != 0.0 };
            let run = |case: &Case| {
                let s = case.student();
                let pass = PassInput { options, ..case.pass(&s, Some(&signal), objective) };
                let dw = random(case.weight.dims(), 9).to_dtype(case.weight.dtype()).unwrap();
                let one = read(fused(pass, Weigh::Known(&weights), &dw).unwrap());
                (one, dw, in_two(case, &signal, &weights, pass))
            };
            let (one, dw, (two, two_dw)) = run(&case);
            let (slow, slow_dw, _) = run(&wide);
            for (want, want_dw) in [(&two, &two_dw), (&slow, &slow_dw)] {
                assert_stats_close(&one.stats, &want.stats, 2e-5);
                assert_eq!(one.rows, want.rows);
                let difference = (one.sum - want.sum).abs();
                assert!(difference < 1e-5 * want.sum.abs(), "{kind:?} {objective:?}: {difference}");
                assert_close(&one.d_hidden, &want.d_hidden, 2e-5);
                assert_close(&dw, want_dw, 2e-5);
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            let (again, again_dw, _) = pool.install(|| run(&case));
            let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(again.sum.to_bits() == one.sum.to_bits() && again.stats == one.stats);
            assert!(bits(&again_dw) == bits(&dw) && bits(&again.d_hidden) == bits(&one.d_hidden));
        }
    }
}

#[test]
fn scores_read_what_is_said_though_no_loss_does() {
    let case = case((20, 8, 700));
    let s = case.student();
    let plain = Objective { lambda: 0.0, ..OBJECTIVES[0] };
    for kind in [SignalKind::Scores, SignalKind::Sampled(30), SignalKind::TopK(9)] {
        let signal = case.sparse(kind, 1.0).unwrap();
        let (dw, plain_dw) = (random(case.weight.dims(), 9), random(case.weight.dims(), 9));
        let known = || Weigh::Known(&case.weights);
        let one = read(fused(case.pass(&s, Some(&signal), plain), known(), &dw).unwrap());
        let none = read(fused(case.pass(&s, None, plain), known(), &plain_dw).unwrap());
        assert_eq!(one.sum.to_bits(), none.sum.to_bits());
        assert_close(&dw, &plain_dw, 0.0);
        for (i, (a, b)) in one.stats.iter().zip(&none.stats).enumerate() {
            let said = signal.said(i).unwrap();
            assert_eq!(a.student, b.student);
            assert_eq!((a.teacher.nll, a.teacher.entropy), (said.nll, said.entropy));
            assert_eq!(a.kl, 0.0, "not asked for");
        }
        let options = ScanOptions { sparse_kl: true, ..1.0.into() };
        let asked = PassInput { options, ..case.pass(&s, Some(&signal), plain) };
        match fused(asked, known(), &dw) {
            Ok(done) => assert!(read(done).stats.iter().any(|s| s.kl != 0.0)),
            Err(e) => {
                assert!(kind == SignalKind::Scores && e.to_string().contains("scores alone"), "{e}")
            }
        }
    }
}

#[test]
fn what_a_signal_cannot_say_is_refused() {
    let case = case((5, 8, 50));
    let (s, dw) = (case.student(), case.weight.zeros_like().unwrap());
    let [scores, sampled] =
        [SignalKind::Scores, SignalKind::Sampled(3)].map(|kind| case.sparse(kind, 1.0).unwrap());
    let known = || Weigh::Known(&case.weights);
    let learns = fused(case.pass(&s, Some(&scores), OBJECTIVES[2]), known(), &dw).unwrap_err();
    assert!(learns.to_string().contains("scores alone"), "{learns}");
    let mut stats = scan(&s, None, &case.targets, 1.0).unwrap();
    let backwards = ScanOptions { reverse_kl: true, ..1.0.into() };
    assert!(hear(&s, &sampled, &mut stats, backwards).is_err(), "no reverse KL of a sample");
    assert!(hear(&s, &Signal::Dense(case.teacher()), &mut stats, 1.0).is_err());
    assert!(hear(&s, &sampled.select(&[0]).unwrap(), &mut stats, 1.0).is_err());
    assert!(hear(&s, &scores, &mut stats, 1.0).is_ok());
    let outside = Signal::Sampled(Sampled::of_rows(
        1,
        (0..5).map(|_| vec![crate::loss::DrawnId { id: 50, count: 1 }]),
        vec![Said::default(); 5],
    ));
    assert!(hear(&s, &outside, &mut stats, 1.0).unwrap_err().to_string().contains("id 50"));
}

#[test]
fn only_forward_kl_takes_a_sample_and_ids_lie_in_the_vocabulary() {
    let (s, t) = pair(DType::F32, 33);
    let stats = scan(&s, Some(&t), &[0; 6], 2.0).unwrap();
    let sampled = reduced(&t, &[0; 6], SignalKind::Sampled(3), 2.0, 1);
    let dw = s.weight.zeros_like().unwrap();
    let refused = |objective| {
        loss(
            LossInput {
                student: &s,
                signal: Some(&sampled),
                stats: &stats,
                targets: &[0; 6],
                weights: &[1.0; 6],
                objective,
            },
            &dw,
        )
        .is_err()
    };
    assert!(
        refused(objective(Divergence::ReverseKl)) && !refused(objective(Divergence::ForwardKl))
    );
    assert!(sampled.check_vocab(1).unwrap_err().to_string().contains("vocabulary has 1"));
}

#[test]
fn planes_are_what_one_draw_of_all_divides_into() {
    let (_, teacher) = pair(DType::F32, 301);
    let (targets, positions) = ([1, 7, 300, 0, 9, 2], [5, 1, 900, 7, 8, 1 << 33]);
    for tau in [1.0, 2.0] {
        let kind = SignalKind::Sampled(50);
        let Signal::Sampled(all) = reduce(&teacher, &targets, kind, tau, 3, &positions).unwrap()
        else {
            panic!("draws")
        };
        let planes =
            reduce_planes(&teacher, &targets, &[8, 8, 16, 18], tau, 3, &positions).unwrap();
        for i in 0..6 {
            let mut sum = std::collections::BTreeMap::new();
            for plane in &planes {
                assert_eq!(plane.row(i).iter().map(|d| d.count).sum::<u32>(), plane.draws);
                plane.row(i).iter().for_each(|d| *sum.entry(d.id).or_insert(0) += d.count);
            }
            let sum: Vec<DrawnId> =
                sum.into_iter().map(|(id, count)| DrawnId { id, count }).collect();
            assert_eq!(sum, all.row(i));
            assert_eq!(planes[0].said[i], all.said[i]);
        }
        // The first plane is what a smaller signal draws.
        let first = reduce(&teacher, &targets, SignalKind::Sampled(8), tau, 3, &positions).unwrap();
        let Signal::Sampled(first) = first else { panic!("draws") };
        assert_eq!(first, planes[0]);
    }
}
