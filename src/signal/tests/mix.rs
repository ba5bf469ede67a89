//! Several signals heard as one: what their mixture says, and what keeps signals from being mixed.

use super::super::mix::Mixture;
use super::*;
use crate::loss::head::{LossInput, loss, scan};
use crate::loss::{Divergence, Objective, head::Logits};
use crate::ops::testing::random;
use candle_core::Tensor;
use serde_json::{Value, json};
use std::path::PathBuf;

fn mixture(kind: Kind, weights: &[f64]) -> Mixture {
    Mixture { header: header(kind, 9), weights: weights.to_vec() }
}

fn drawn(draws: u32, rows: &[&[(u32, u32)]]) -> Signal {
    let row = |row: &&[(u32, u32)]| row.iter().map(|&(id, count)| DrawnId { id, count }).collect();
    Signal::Sampled(Sampled::of_rows(
        draws,
        rows.iter().map(row),
        vec![Said::default(); rows.len()],
    ))
}

/// Rows of ids with q, and q of the rest.
fn top_of(rows: &[(&[(u32, f64)], f64)]) -> Signal {
    let entries = || rows.iter().flat_map(|row| row.0);
    Signal::TopK(TopK {
        k: rows[0].0.len(),
        ids: entries().map(|e| e.0).collect(),
        logp: entries().map(|e| e.1.ln() as f32).collect(),
        rest: rows.iter().map(|row| row.1.ln() as f32).collect(),
        said: vec![Said::default(); rows.len()],
    })
}

fn as_top(signal: Signal) -> TopK {
    let Signal::TopK(top) = signal else { panic!("entries") };
    top
}

fn as_drawn(signal: Signal) -> Sampled {
    let Signal::Sampled(sampled) = signal else { panic!("draws") };
    sampled
}

/// What a loss makes of counts.
fn shares(sampled: &Sampled, row: usize) -> Vec<(u32, f32)> {
    sampled.row(row).iter().map(|d| (d.id, d.count as f32 / sampled.draws as f32)).collect()
}

#[test]
fn the_shares_of_a_mixture_are_the_weighed_shares_of_its_parts() {
    let a = drawn(4, &[&[(1, 3), (5, 1)], &[(0, 4)]]);
    let b = drawn(4, &[&[(1, 1), (2, 2), (9, 1)], &[(96, 4)]]);
    let kind = sampled(&[4], 1.0);
    let found = mixture(kind.clone(), &[0.75, 0.25]).signal(&[a.clone(), b.clone()]).unwrap();
    let found = as_drawn(found);
    // 0.75 3/4 + 0.25 1/4; 0.25 2/4; 0.75 1/4; 0.25 1/4.
    assert_eq!(shares(&found, 0), [(1, 0.625), (2, 0.125), (5, 0.1875), (9, 0.0625)]);
    assert_eq!(shares(&found, 1), [(0, 0.75), (96, 0.25)]);
    let found = as_drawn(mixture(kind, &[0.7, 0.3]).signal(&[a, b]).unwrap());
    for ((id, share), (want_id, want)) in
        shares(&found, 0).into_iter().zip([(1, 0.6), (2, 0.15), (5, 0.175), (9, 0.075)])
    {
        assert!(id == want_id && (share - want).abs() < 1e-7, "{id}: {share}");
    }
    // As many draws as there can be: no count is too large, and none is lost.
    let most = |id| drawn(MOST_DRAWS, &[&[(id, MOST_DRAWS)]]);
    for weights in [&[0.5, 0.5][..], &[1.0 / 3.0; 3], &[0.9999, 0.0001], &[1.0 / 7.0; 7]] {
        let parts: Vec<Signal> = weights.iter().map(|_| most(3)).collect();
        let found = as_drawn(mixture(sampled(&[65_536], 1.0), weights).signal(&parts).unwrap());
        assert_eq!(shares(&found, 0), [(3, 1.0)]);
        assert_eq!((found.draws, found.row(0)[0].count), (1 << 31, 1 << 31));
        let parts: Vec<Signal> = (0..weights.len() as u32).map(most).collect();
        let found = as_drawn(mixture(sampled(&[65_536], 1.0), weights).signal(&parts).unwrap());
        let sum: u64 = found.row(0).iter().map(|d| u64::from(d.count)).sum();
        assert_eq!((sum, found.row(0).len()), (1 << 31, weights.len()));
        for (share, weight) in shares(&found, 0).iter().zip(weights) {
            assert!((f64::from(share.1) - weight).abs() <= 1.0 / 32_768.0, "{share:?} {weight}");
        }
    }
}

#[test]
fn the_largest_entries_of_a_mixture_are_kept_and_all_else_is_its_rest() {
    let a = top_of(&[(&[(1, 0.5), (4, 0.25)], 0.25), (&[(8, 0.5), (9, 0.3)], 0.2)]);
    let b =
        top_of(&[(&[(1, 0.1), (2, 0.4), (7, 0.3)], 0.2), (&[(3, 0.3), (5, 0.3), (6, 0.2)], 0.2)]);
    let kind = Kind::TopK { k: 3, temperature: 1.0 };
    let found = as_top(mixture(kind.clone(), &[0.5, 0.5]).signal(&[a, b]).unwrap());
    // 1: 0.3, 2: 0.2, 4: 0.125, 7: 0.15. Then 8: 0.25, and three of 0.15: the lower two.
    assert_eq!(found.ids, [1, 2, 7, 3, 5, 8]);
    let close = |found: f32, want: f64| (f64::from(found).exp() - want).abs() < 1e-7;
    for (found, want) in found.logp.iter().zip([0.3, 0.2, 0.15, 0.15, 0.15, 0.25]) {
        assert!(close(*found, want), "{found} of {want}");
    }
    assert!(close(found.rest[0], 0.35) && close(found.rest[1], 0.45), "{:?}", found.rest);
    for row in 0..2 {
        let all = found.logp[row * 3..][..3].iter().chain([&found.rest[row]]);
        let mass: f64 = all.map(|l| f64::from(*l).exp()).sum();
        assert!((mass - 1.0).abs() < 1e-6, "{mass}");
    }
    // Without a rest there is none in the mixture.
    let whole = |q| top_of(&[(&[(0, q), (1, 1.0 - q)], 0.0)]);
    let kind = Kind::TopK { k: 2, temperature: 1.0 };
    let found = mixture(kind, &[0.5, 0.5]).signal(&[whole(0.5), whole(0.25)]).unwrap();
    let found = as_top(found);
    assert!(found.rest == [f32::NEG_INFINITY] && close(found.logp[0], 0.375), "{found:?}");
}

#[test]
fn what_is_said_is_the_loss_by_the_mixture_and_the_mean_of_entropies() {
    let said = |nll, entropy, entropy_tau| vec![Said { nll, entropy, entropy_tau }];
    let of = |weights: &[f64], parts: &[Vec<Said>]| mixture(Kind::Scores, weights).said(parts)[0];
    let found = of(&[0.75, 0.25], &[said(1.0, 2.0, 3.0), said(3.0, 4.0, 1.0)]);
    let want = -(0.75 * (-1.0f64).exp() + 0.25 * (-3.0f64).exp()).ln();
    assert!((f64::from(found.nll) - want).abs() <= want / 2048.0, "{found:?}");
    assert_eq!((found.entropy, found.entropy_tau), (2.5, 2.5));
    assert_eq!(found.rounded(), found, "sixteen bits");
    // Far below what a probability can be written as.
    let found = of(&[0.5, 0.5], &[said(2000.0, 1.0, 1.0), said(3000.0, 1.0, 1.0)]);
    assert_eq!(found.nll, 2001.0, "2000 + ln 2 in sixteen bits");
    let never = f32::INFINITY;
    assert_eq!(of(&[0.5, 0.5], &[said(never, 1.0, 1.0), said(never, 1.0, 1.0)]).nll, never);
    let one = of(&[0.5, 0.5], &[said(never, 1.0, 1.0), said(0.0, 1.0, 1.0)]).nll;
    assert!((one - 2f32.ln()).abs() < 1e-3, "{one}");
}

/// Signals `a` and `b` of these headers, in a folder.
fn two(a: &Header, b: &Header) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    for (name, header) in [("a", a), ("b", b)] {
        let at = place.path().join(name);
        fs::create_dir(&at).unwrap();
        write_shard(&at, &header.for_shard(Shard::ALL), u64::MAX);
    }
    place
}

fn mixed(place: &Path, signals: &[(&str, f64)], out: &str) -> crate::error::Result<Mixed> {
    let signals: Vec<(PathBuf, f64)> =
        signals.iter().map(|(name, weight)| (place.join(name), *weight)).collect();
    super::super::mix(&signals, &place.join(out))
}

#[test]
fn a_mixture_of_a_signal_with_itself_is_that_signal_to_the_bit() {
    let kinds = [
        sampled(&[8, 8, 16, 18], 1.0),
        sampled(&[3, 200, 7], 2.0),
        Kind::TopK { k: 9, temperature: 1.0 },
        Kind::TopK { k: VOCAB, temperature: 1.0 },
        Kind::Scores,
    ];
    for kind in kinds {
        let header = header(kind.clone(), 300);
        let place = two(&header, &header);
        let weights: [&[(&str, f64)]; 3] = [
            &[("a", 1.0), ("b", 1.0)],
            &[("a", 1.0), ("b", 1.0), ("a", 1.0)],
            &[("a", 0.7), ("b", 0.3)],
        ];
        let positions: Vec<u64> = (0..299).map(|i| i * 37 % 299).collect();
        for weights in weights {
            let _ = fs::remove_dir_all(place.path().join("both"));
            let made = mixed(place.path(), weights, "both").unwrap();
            assert_eq!(made.header.signal, kind);
            for draws in kind.sums().into_iter().chain(kind.planes().is_empty().then_some(0)) {
                let read = |name| {
                    let stored = Stored::open(&place.path().join(name)).unwrap();
                    let stored = stored.with_draws(draws).unwrap();
                    let fetched = stored.fetch(&positions).unwrap();
                    let some = fetched.signal(Some(&[7, 3, 298])).unwrap();
                    (fetched.said(), fetched.signal(None).unwrap(), some)
                };
                let (one, both) = (read("a"), read("both"));
                assert_eq!(one.0, both.0);
                for (one, both) in [(one.1, both.1), (one.2, both.2)] {
                    match (one, both) {
                        (Signal::TopK(one), Signal::TopK(both)) => assert_eq!(one, both),
                        (Signal::Sampled(one), Signal::Sampled(both)) => {
                            assert_eq!((&one.starts, &one.said), (&both.starts, &both.said));
                            assert!(
                                (0..one.said.len()).all(|i| shares(&one, i) == shares(&both, i))
                            );
                        }
                        _ => panic!("of one kind"),
                    }
                }
            }
        }
    }
}

/// Loss and gradients of rows that learn from `signal`.
fn learned(signal: &Signal, n: usize, divergence: Divergence) -> (f64, Vec<f32>) {
    let student = Logits::new(random((n, 8), 1), random((VOCAB as usize, 8), 2));
    let targets: Vec<u32> = (0..n as u32).collect();
    let objective = Objective { lambda: 1.0, temperature: 2.0, divergence };
    let stats = scan(&student, None, &targets, 2.0).unwrap();
    let d_weight = Tensor::zeros_like(&random((VOCAB as usize, 8), 2)).unwrap();
    let weights = vec![1.0; n];
    let input = LossInput {
        student: &student,
        signal: Some(signal),
        stats: &stats,
        targets: &targets,
        weights: &weights,
        objective,
    };
    let done = loss(input, &d_weight).unwrap();
    let all = [&done.d_hidden, &d_weight].map(|t| t.flatten_all().unwrap().to_vec1().unwrap());
    (done.sum, all.concat())
}

#[test]
fn the_gradient_of_a_mixture_is_the_weighed_sum_of_the_gradients_of_its_parts() {
    const N: usize = 40;
    // Entropies whose mean sixteen bits hold, so that losses add up, too.
    let said = |entropy| vec![Said { nll: 1.0, entropy, entropy_tau: entropy }; N];
    let rows = |from: u64| (from..from + N as u64).map(|p| draws(p, &[50]).pop().unwrap());
    let of = |from, entropy| Signal::Sampled(Sampled::of_rows(50, rows(from), said(entropy)));
    let same_ids = |from: u64, entropy| {
        // Every id: then no part lays mass where another names ids.
        let rows: Vec<TopK> = (from..from + N as u64).map(|p| top(p, VOCAB as usize)).collect();
        let sum = |row: &TopK| row.logp.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
        Signal::TopK(TopK {
            k: VOCAB as usize,
            ids: rows.iter().flat_map(|row| row.ids.clone()).collect(),
            logp: rows
                .iter()
                .flat_map(|row| row.logp.iter().map(|l| l - sum(row) as f32).collect::<Vec<_>>())
                .collect(),
            rest: vec![f32::NEG_INFINITY; N],
            said: said(entropy),
        })
    };
    let top_k = Kind::TopK { k: VOCAB, temperature: 2.0 };
    for weights in [[0.5, 0.5], [0.75, 0.25]] {
        for (kind, parts) in [
            (sampled(&[50], 2.0), [of(0, 1.0), of(100, 3.0)]),
            (top_k.clone(), [same_ids(0, 1.0), same_ids(100, 3.0)]),
        ] {
            let both = mixture(kind.clone(), &weights).signal(&parts).unwrap();
            let (sum, gradient) = learned(&both, N, Divergence::ForwardKl);
            let [a, b] = parts.each_ref().map(|part| learned(part, N, Divergence::ForwardKl));
            // Sums of 40 rows of numbers near 1, in single precision.
            let largest = gradient.iter().fold(0f32, |m, g| m.max(g.abs()));
            for (i, found) in gradient.iter().enumerate() {
                let want = weights[0] as f32 * a.1[i] + weights[1] as f32 * b.1[i];
                assert!((found - want).abs() < 1e-5 * largest, "{kind}, {i}: {found} {want}");
            }
            let mean = weights[0] * a.0 + weights[1] * b.0;
            match kind {
                Kind::Sampled { .. } => assert!((sum - mean).abs() < 1e-4 * mean, "{sum} {mean}"),
                // Jensen: between buckets the loss is the divergence to the mixture itself.
                _ => assert!(sum < mean, "{sum} {mean}"),
            }
            assert!(
                a.1.iter().zip(&b.1).any(|(a, b)| (a - b).abs() > 0.1 * largest),
                "parts differ"
            );
        }
    }
}

#[test]
fn what_does_not_belong_together_is_refused_with_both_values_also_when_it_is_opened() {
    let a = header(sampled(&[8, 8], 1.0), 100);
    let data = |data: DataId| Header { data, ..a.clone() };
    let cases = [
        (
            data(DataId { content_hash: "other".into(), ..a.data.clone() }),
            "data (SHA-256): other and d",
        ),
        (
            data(DataId { tokenizer_hash: "other".into(), ..a.data.clone() }),
            "tokenizer (SHA-256): other and t",
        ),
        (data(DataId { tokens: 90, ..a.data.clone() }), "tokens: 90 and 100"),
        (header(Kind::TopK { k: 8, temperature: 1.0 }, 100), "kind: top-k and sampled"),
        (header(Kind::Scores, 100), "kind: none and sampled"),
        (header(sampled(&[8, 8], 2.0), 100), "temperature: 2 and 1"),
        (
            Header { window: Window { context: 16, stride: 8 }, ..a.clone() },
            "windows: windows of 16 tokens, one every 8 and windows of 8 tokens",
        ),
        (
            header(sampled(&[4, 8], 1.0), 100),
            "planes end together: sampled=12 (4 + 8) and sampled=16 (8 + 8)",
        ),
    ];
    for (b, what) in cases {
        let place = two(&a, &b);
        let refused =
            mixed(place.path(), &[("a", 1.0), ("b", 2.0)], "both").unwrap_err().to_string();
        let names = |text: &str| text.contains("/b and ") && text.contains("/a cannot be mixed");
        assert!(names(&refused) && refused.contains(what), "{refused}");
        assert!(!place.path().join("both").exists());
        let both = place.path().join("both");
        fs::create_dir(&both).unwrap();
        let part = |name: &str| {
            let hash = Stored::open(&place.path().join(name)).unwrap().hash().to_string();
            json!({"signal": format!("../{name}"), "weight": 1, "hash": hash})
        };
        let file =
            json!({"format": "eslm-kd signal mix", "version": 1, "parts": [part("a"), part("b")]});
        fs::write(both.join("mix.json"), file.to_string()).unwrap();
        let refused = Stored::open(&both).unwrap_err().to_string();
        assert!(
            names(&refused) && refused.contains(what) && refused.contains("/both: "),
            "{refused}"
        );
        assert!(verify(&both, &Silent).unwrap().damaged[0].contains(what));
        assert!(list(place.path()).unwrap()[2].damage.as_ref().unwrap().contains(what));
    }
}

#[test]
fn parts_may_differ_in_size_vocabulary_and_shards() {
    let a = header(sampled(&[8, 8, 16], 1.0), 100);
    let b = Header { block: 8, ..header(sampled(&[16, 5], 1.0), 100) };
    let place = two(&a, &b);
    let made = mixed(place.path(), &[("a", 7.0), ("b", 3.0)], "both").unwrap();
    assert_eq!(made.header.signal, Kind::Sampled { planes: vec![16], seed: 3, temperature: 1.0 });
    assert_eq!(made.header.teacher.name, "0.7 some + 0.3 some");
    assert_eq!((made.parts[0].weight, &*made.parts[0].signal), (0.7, Path::new("../a")));
    let stored = Stored::open(&place.path().join("both")).unwrap();
    let found = as_drawn(stored.fetch(&[40, 3]).unwrap().signal(None).unwrap());
    // Of both the same sixteen.
    let want = drawn_as(&draws(3, &[16]).pop().unwrap(), 16);
    assert_eq!(shares(&found, 1), want);
    let refused = stored.with_draws(8).unwrap_err().to_string();
    assert!(refused.contains("16 draws"), "{refused}");
    // The order of parts and their weights are what a mix is.
    let hash = |signals: &[(&str, f64)]| {
        let _ = fs::remove_dir_all(place.path().join("other"));
        mixed(place.path(), signals, "other").unwrap().hash
    };
    assert_eq!(hash(&[("a", 0.7), ("b", 0.3)]), made.hash);
    assert_ne!(hash(&[("a", 0.3), ("b", 0.7)]), made.hash);
    assert_ne!(hash(&[("a", 0.7), ("a", 0.3)]), made.hash);
    // As many entries as the larger has, but where a rest would have no id to be of.
    for (k, more, want) in [(5, 9, 9), (9, VOCAB, VOCAB - 1)] {
        let of = |k| header(Kind::TopK { k, temperature: 1.0 }, 50);
        let (a, b) = (of(k), of(more));
        let place = two(&a, &b);
        let made = mixed(place.path(), &[("a", 1.0), ("b", 1.0)], "both").unwrap();
        assert_eq!(made.header.signal, Kind::TopK { k: want, temperature: 1.0 });
        let stored = Stored::open(&place.path().join("both")).unwrap();
        let found = as_top(stored.fetch(&[3, 9]).unwrap().signal(None).unwrap());
        assert_eq!(found.ids.len(), 2 * want as usize);
        assert!(found.rest.iter().all(|rest| rest.is_finite()));
    }
}

fn drawn_as(row: &[DrawnId], draws: u32) -> Vec<(u32, f32)> {
    row.iter().map(|d| (d.id, d.count as f32 / draws as f32)).collect()
}

#[test]
fn a_part_that_is_gone_changed_damaged_or_unfinished_is_named_with_its_mix() {
    let a = header(sampled(&[8], 1.0), 100);
    let place = two(&a, &a);
    let at = |name: &str| place.path().join(name);
    let made = mixed(place.path(), &[("a", 0.7), ("b", 0.3)], "both").unwrap();
    assert_eq!(verify(&at("both"), &Silent).unwrap().damaged, [] as [String; 0]);
    let refused = |whats: &[&str]| {
        let said = Stored::open(&at("both")).unwrap_err().to_string();
        assert!(said.contains("/both: a part of this mix: ") && said.contains("/b"), "{said}");
        assert!(!said.contains("/both/.."), "{said}");
        let found = verify(&at("both"), &Silent).unwrap();
        let listed = list(place.path()).unwrap();
        let listed = listed.iter().find(|one| one.signal == at("both")).unwrap();
        for what in whats {
            assert!(said.contains(what), "{said}");
            assert!(listed.damage.as_ref().unwrap().contains(what), "{listed:?}");
        }
        assert!(found.damaged.len() + found.missing.len() == 1, "{found:?}");
    };
    let file = at("b").join(Shard::ALL.file());
    let good = fs::read(&file).unwrap();
    fs::rename(at("b"), at("c")).unwrap();
    refused(&["is gone; put it back, or mix again: eslm-kd signal mix"]);
    // Another signal in its place; then one that is begun.
    fs::create_dir(at("b")).unwrap();
    let other = header(sampled(&[9], 1.0), 100).for_shard(Shard::ALL);
    write_shard(&at("b"), &other, u64::MAX);
    let (was, now) = (Stored::open(&at("c")).unwrap(), Stored::open(&at("b")).unwrap());
    refused(&["expected the signal that was mixed, found another", was.hash(), now.hash()]);
    fs::remove_dir_all(at("b")).unwrap();
    fs::create_dir(at("b")).unwrap();
    write_shard(&at("b"), &a.for_shard(Shard::ALL), 70);
    refused(&["is not finished: 64 of 99 positions"]);
    fs::remove_dir_all(at("b")).unwrap();
    fs::rename(at("c"), at("b")).unwrap();
    // A header, and then a block, that is damaged.
    let mut bad = good.clone();
    bad[40] ^= 1;
    fs::write(&file, &bad).unwrap();
    refused(&["damaged"]);
    let mut bad = good.clone();
    let at_end = bad.len() - 200;
    bad[at_end] ^= 1;
    fs::write(&file, &bad).unwrap();
    let stored = Stored::open(&at("both")).unwrap();
    let said = stored.fetch(&(0..99).collect::<Vec<_>>()).unwrap_err().to_string();
    assert!(
        said.contains("/both: ") && said.contains("/b/00000-of-00001.signal: block "),
        "{said}"
    );
    assert_eq!(verify(&at("both"), &Silent).unwrap().damaged.len(), 1);
    fs::write(&file, &good).unwrap();
    assert_eq!(Stored::open(&at("both")).unwrap().hash(), made.hash);
    // Moved together they are the same; alone, the mix has lost its parts.
    let elsewhere = tempfile::tempdir().unwrap();
    let to = |name: &str| elsewhere.path().join("x").join(name);
    fs::create_dir(elsewhere.path().join("x")).unwrap();
    ["a", "b", "both"].iter().for_each(|name| fs::rename(at(name), to(name)).unwrap());
    assert_eq!(Stored::open(&to("both")).unwrap().hash(), made.hash);
    fs::rename(to("both"), elsewhere.path().join("both")).unwrap();
    let said = Stored::open(&elsewhere.path().join("both")).unwrap_err().to_string();
    assert!(said.contains("/a: is gone"), "{said}");
}

#[test]
fn a_mix_replaces_nothing_and_is_made_of_signals_alone() {
    let a = header(sampled(&[8], 1.0), 100);
    let place = two(&a, &a);
    let at = |name: &str| place.path().join(name);
    let refused = |signals: &[(&str, f64)], out: &str, whats: &[&str]| {
        let said = mixed(place.path(), signals, out).unwrap_err().to_string();
        whats.iter().for_each(|what| assert!(said.contains(what), "no {what:?} in {said}"));
    };
    let both = [("a", 0.7), ("b", 0.3)];
    let first = mixed(place.path(), &both, "deep/er/both").unwrap();
    assert_eq!(&*first.parts[1].signal, Path::new("../../../b"));
    // The same again is the same; a run may have learned from it, so other weights need another place.
    assert_eq!(mixed(place.path(), &[("a", 7.0), ("b", 3.0)], "deep/er/both").unwrap(), first);
    let other = [("b", 1.0), ("a", 1.0)];
    refused(&other, "deep/er/both", &["both: holds another mix (", "a=0.7", "another --out"]);
    assert_eq!(Stored::open(&at("deep/er/both")).unwrap().hash(), first.hash);
    fs::remove_dir_all(at("deep/er/both")).unwrap();
    let second = mixed(place.path(), &other, "deep/er/both").unwrap();
    assert_ne!(first.hash, second.hash);
    let held: Vec<_> = fs::read_dir(at("deep/er/both")).unwrap().collect();
    assert_eq!(held.len(), 1);
    for out in ["a", "held"] {
        fs::create_dir_all(at("held")).unwrap();
        fs::write(at("held").join("own.txt"), "own").unwrap();
        refused(&both, out, &["holds ", "name a new folder with --out"]);
    }
    refused(&[("a", 1.0)], "one", &["expected two signals or more to mix, found 1"]);
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-5] {
        refused(&[("a", 1.0), ("b", weight)], "odd", &["a positive weight", "0.0001"]);
    }
    refused(&[("a", 1.0), ("none", 1.0)], "odd", &["/none: expected a signal"]);
    refused(
        &[("a", 1.0), ("deep/er/both", 1.0)],
        "odd",
        &["found a mix; name its parts", "/b=0.5"],
    );
    assert!(!at("one").exists() && !at("odd").exists());
    // A file that somebody wrote.
    let good: Value =
        serde_json::from_slice(&fs::read(at("deep/er/both/mix.json")).unwrap()).unwrap();
    let wrong = |key: &str, value: Value, what: &str| {
        let mut file = good.clone();
        file[key] = value;
        fs::write(at("deep/er/both/mix.json"), file.to_string()).unwrap();
        let said = Stored::open(&at("deep/er/both")).unwrap_err().to_string();
        assert!(said.contains("mix.json: ") && said.contains(what), "{said}");
        assert!(verify(&at("deep/er/both"), &Silent).is_err());
    };
    wrong("version", json!(2), "of version 2");
    wrong("format", json!("x"), "found \"x\"");
    wrong("parts", json!([]), "two signals or more");
    wrong("parts", json!([{"signal": "a"}]), "missing field");
    wrong("more", json!(1), "unknown field `more`");
    let mut parts = good["parts"].clone();
    parts[0]["weight"] = json!(-1);
    wrong("parts", parts, "positive weight");
    // One that is of a mix: it may name itself.
    let mut parts = good["parts"].clone();
    parts[0]["signal"] = json!(".");
    let mut file = good.clone();
    file["parts"] = parts;
    fs::write(at("deep/er/both/mix.json"), file.to_string()).unwrap();
    let said = Stored::open(&at("deep/er/both")).unwrap_err().to_string();
    assert!(said.contains("found a mix"), "{said}");
}

#[test]
fn a_mix_is_inspected_listed_and_read_ahead() {
    let a = header(sampled(&[8], 1.0), 200);
    let other = TeacherId { name: "other".into(), ..a.teacher.clone() };
    let place = two(&a, &Header { teacher: other, ..a.clone() });
    let both = place.path().join("both");
    let made = mixed(place.path(), &[("a", 0.5), ("b", 0.5)], "both").unwrap();
    let [one, found] =
        ["a", "both"].map(|name| inspect(&place.path().join(name), &Silent).unwrap());
    assert_eq!((&found.histogram, found.ids, found.nll), (&one.histogram, one.ids, one.nll));
    assert_eq!((found.positions, found.shards, found.parts.len()), (199, 2, 2));
    assert_eq!((found.hash, one.parts), (made.hash, Vec::new()));
    assert_eq!(found.row_bytes_per_token, 2.0 * one.row_bytes_per_token);
    let listed = list(place.path()).unwrap();
    let teachers: Vec<&str> = listed.iter().map(|one| &*one.teacher).collect();
    assert_eq!(teachers, ["some", "other", "0.5 some + 0.5 other"]);
    assert_eq!((&*listed[2].kind, listed[2].positions), ("mix: sampled=8 (8)", 199));
    assert_eq!(verify(&both, &Silent).unwrap().positions, 2 * 199);
    assert!(is_signal(&both));
    let stored = Stored::open(&both).unwrap();
    stored.read_ahead(&[3, 40]);
    for name in ["a", "b"] {
        fs::write(place.path().join(name).join(Shard::ALL.file()), []).unwrap();
    }
    assert!(stored.fetch(&[3, 40]).and_then(|f| f.signal(None)).is_ok());
    assert!(stored.fetch(&[150]).is_err());
}
