//! From a teacher's logits to the sparse signals, in one product: a block of rows is formed once,
//! and its statistics and what the signal takes of it are read from the same memory. No more is
//! stored than is returned.

use super::cpu::{Running, TILE};
use super::fused::{Product, ROWS};
use super::{Logits, RowStats, ScanOptions, Stats, cuda, reference, scan};
use crate::error::{Error, Result};
use crate::loss::signal::{DrawnId, Said, Sampled, Signal, SignalKind, TopK};
use crate::ops::Backend;
use crate::ops::simd::{LANES, exp, multiversion, sum_lanes};
use crate::rng::{Rng, Stream};
use rayon::prelude::*;

/// Entries whose probabilities are added up, or whose largest is found, before any is looked at by
/// itself.
const CHUNK: usize = 128;

/// Products of fewer rows take kernels of their own, which round differently; what is said of a row
/// must not depend on how many others there are.
const LEAST_ROWS: usize = 16;

/// The signal of this kind in `teacher` [N, V] at temperature `tau`, beside it the teacher's
/// cross-entropy to `targets` `[N]` and its entropies, as [`scan`] forms them. Draw s of the row at
/// position n of `positions` `[N]` is a function of (`seed`, s, n) and of the row alone: it depends
/// neither on threads nor on which other rows are there.
///
/// Errs where the numbers of rows differ, or a target lies outside the vocabulary.
pub fn reduce(
    teacher: &Logits,
    targets: &[u32],
    kind: SignalKind,
    tau: f32,
    seed: u64,
    positions: &[u64],
) -> Result<Signal> {
    let kind = match kind {
        SignalKind::Dense => return Ok(Signal::Dense(teacher.clone())),
        SignalKind::TopK(k) => SignalKind::TopK(k.clamp(1, teacher.vocab())),
        SignalKind::Sampled(0) => SignalKind::Scores,
        other => other,
    };
    let planes = if let SignalKind::Sampled(draws) = kind { vec![draws] } else { Vec::new() };
    let rng = Rng::new(seed, Stream::Teacher);
    let of = Reduction { kind, planes: &planes, tau, rng, positions };
    let (taken, said) = of.run(teacher, targets)?;
    Ok(of.signal(teacher.vocab(), taken, said))
}

/// The sampled signals of consecutive draws: `planes` says how many each has. Together they are what
/// [`reduce`] draws.
pub fn reduce_planes(
    teacher: &Logits,
    targets: &[u32],
    planes: &[u32],
    tau: f32,
    seed: u64,
    positions: &[u64],
) -> Result<Vec<Sampled>> {
    let kind = SignalKind::Sampled(planes.iter().sum());
    let rng = Rng::new(seed, Stream::Teacher);
    let of = Reduction { kind, planes, tau, rng, positions };
    let (mut taken, said) = of.run(teacher, targets)?;
    let plane = |(i, &draws): (usize, &u32)| {
        let rows = taken.iter_mut().map(|of_row| match &mut of_row.0 {
            Taken::Drawn(planes) => std::mem::take(&mut planes[i]),
            Taken::Top(_) | Taken::Nothing => Vec::new(),
        });
        Sampled::of_rows(draws, rows, said.clone())
    };
    Ok(planes.iter().enumerate().map(plane).collect())
}

/// What is taken of rows.
struct Reduction<'a> {
    /// `TopK` of 1 to V entries.
    kind: SignalKind,
    /// How the draws of a sampled signal are divided.
    planes: &'a [u32],
    tau: f32,
    rng: Rng,
    positions: &'a [u64],
}

/// What is taken of one row.
enum Taken {
    /// (id, logit), by id.
    Top(Vec<(u32, f32)>),
    /// Plane by plane.
    Drawn(Vec<Vec<DrawnId>>),
    Nothing,
}

/// What is taken of rows, and the statistics of each.
type Rows = Vec<(Taken, Stats)>;

impl Reduction<'_> {
    /// What is taken of each row with the row's statistics, and what is said of it.
    fn run(&self, teacher: &Logits, targets: &[u32]) -> Result<(Rows, Vec<Said>)> {
        super::check(teacher, None, targets)?;
        if self.positions.len() != targets.len() {
            return Err(Error::internal(format!(
                "expected a position for each of {} rows of a teacher's logits, found {}",
                targets.len(),
                self.positions.len()
            )));
        }
        let taken = match Backend::of(&teacher.hidden) {
            Backend::Cpu => self.by_blocks(teacher, targets)?,
            backend => self.after_a_scan(teacher, targets, backend)?,
        };
        let said =
            |&(_, teacher): &(Taken, Stats)| Said::of(&RowStats { teacher, ..RowStats::default() });
        let said = taken.iter().map(said).collect();
        Ok((taken, said))
    }

    fn by_blocks(&self, teacher: &Logits, targets: &[u32]) -> Result<Rows> {
        let (n, v) = (targets.len(), teacher.vocab());
        let product = Product::new(teacher)?;
        let mut block = vec![0.0; ROWS.min(n).max(LEAST_ROWS) * v];
        let mut taken = Vec::with_capacity(n);
        for start in (0..n).step_by(ROWS) {
            let count = ROWS.min(n - start);
            product.form_at_least(&mut block, start, count, LEAST_ROWS);
            let one = |i: usize| {
                let (row, t) = (start + i, &block[i * v..][..v]);
                let stats = statistics(t, targets[row] as usize, self.tau);
                (self.take(row, t, &stats), stats)
            };
            taken.par_extend((0..count).into_par_iter().map(one));
        }
        Ok(taken)
    }

    /// Where whole rows are elsewhere, or in another format: a scan, then what a GPU selects by
    /// itself, or what is brought here.
    fn after_a_scan(&self, teacher: &Logits, targets: &[u32], backend: Backend) -> Result<Rows> {
        let stats: Vec<Stats> =
            scan(teacher, None, targets, self.tau)?.iter().map(|s| s.student).collect();
        let taken: Vec<Taken> = match self.kind {
            SignalKind::Dense | SignalKind::Scores => {
                stats.iter().map(|_| Taken::Nothing).collect()
            }
            SignalKind::TopK(k) if backend == Backend::Gpu => {
                let (ids, logits) = cuda::largest(teacher, k)?;
                let rows = ids.chunks_exact(k).zip(logits.chunks_exact(k));
                rows.map(|(ids, logits)| {
                    Taken::Top(ids.iter().copied().zip(logits.iter().copied()).collect())
                })
                .collect()
            }
            SignalKind::Sampled(draws) if backend == Backend::Gpu => {
                let uniforms: Vec<f64> =
                    (0..stats.len()).flat_map(|row| self.uniforms(row, draws)).collect();
                let ids = cuda::draw(teacher, self.tau, draws as usize, &uniforms)?;
                ids.chunks_exact(draws as usize)
                    .map(|ids| Taken::Drawn(self.counted(ids)))
                    .collect()
            }
            SignalKind::TopK(_) | SignalKind::Sampled(_) => {
                let rows = reference::host_rows(teacher)?;
                let rows = rows.par_iter().zip(&stats).enumerate();
                rows.map(|(row, (t, stats))| self.take(row, t, stats)).collect()
            }
        };
        Ok(taken.into_iter().zip(stats).collect())
    }

    fn take(&self, row: usize, t: &[f32], stats: &Stats) -> Taken {
        match self.kind {
            SignalKind::Dense | SignalKind::Scores => Taken::Nothing,
            SignalKind::TopK(k) => Taken::Top(largest(t, k)),
            SignalKind::Sampled(draws) => {
                let planes = self.planes.iter().enumerate();
                let of_draw = planes.flat_map(|(plane, n)| (0..*n).map(move |_| plane));
                let uniforms = self.uniforms(row, draws).zip(of_draw).collect();
                Taken::Drawn(drawn(t, stats.max, 1.0 / self.tau, uniforms, self.planes.len()))
            }
        }
    }

    /// Ids in the order of their draws, counted plane by plane.
    fn counted(&self, ids: &[u32]) -> Vec<Vec<DrawnId>> {
        let mut rest = ids;
        let plane = |n: &u32| {
            let (of_plane, after) = rest.split_at(*n as usize);
            rest = after;
            counted(of_plane)
        };
        self.planes.iter().map(plane).collect()
    }

    fn uniforms(&self, row: usize, draws: u32) -> impl Iterator<Item = f64> + use<> {
        let (rng, position) = (self.rng, self.positions[row]);
        (0..draws).map(move |draw| uniform(rng, draw, position))
    }

    fn signal(&self, vocab: usize, taken: Rows, said: Vec<Said>) -> Signal {
        let SignalKind::TopK(k) = self.kind else {
            let draws = if let SignalKind::Sampled(draws) = self.kind { draws } else { 0 };
            let rows = taken.into_iter().map(|(of_row, _)| match of_row {
                Taken::Drawn(planes) => planes.into_iter().next().unwrap_or_default(),
                Taken::Top(_) | Taken::Nothing => Vec::new(),
            });
            return Signal::Sampled(Sampled::of_rows(draws, rows, said));
        };
        let mut top = TopK { k, ids: Vec::new(), logp: Vec::new(), rest: Vec::new(), said };
        for (of_row, stats) in taken {
            let Taken::Top(entries) = of_row else { continue };
            let level = |t: f32| {
                let log_q = (t - stats.max) * (1.0 / self.tau) - stats.log_sum_tau;
                TopK::level(f64::from(log_q).exp())
            };
            let levels: Vec<u32> = entries.iter().map(|e| level(e.1)).collect();
            top.ids.extend(entries.iter().map(|e| e.0));
            top.logp.extend(levels.iter().map(|s| TopK::logp_of(*s)));
            let rest =
                if k == vocab { f32::NEG_INFINITY } else { TopK::rest_of(levels.into_iter()) };
            top.rest.push(rest);
        }
        Signal::TopK(top)
    }
}

/// Those of a scan of the teacher alone.
fn statistics(t: &[f32], target: usize, tau: f32) -> Stats {
    let mut running = Running::default();
    for (i, tile) in t.chunks(TILE).enumerate() {
        running.add(tile, None, target.wrapping_sub(i * TILE), ScanOptions::from(tau));
    }
    running.finish().student
}

/// Ids and how often each is there, ascending.
fn counted(ids: &[u32]) -> Vec<DrawnId> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    let of = |same: &[u32]| DrawnId { id: same[0], count: same.len() as u32 };
    ids.chunk_by(|a, b| a == b).map(of).collect()
}

/// In [0, 1), with 53 random bits.
fn uniform(rng: Rng, draw: u32, token: u64) -> f64 {
    (rng.bits(draw, token) >> 11) as f64 / (1u64 << 53) as f64
}

/// The `k` largest of a row, from 1 to all, by id; of equal ones the lower ids.
///
/// `k` chunks whose largest entry is not below a threshold hold `k` entries that are not: the k-th
/// largest of the chunks' maxima is such a threshold, and hardly more than `k` entries reach it.
fn largest(t: &[f32], k: usize) -> Vec<(u32, f32)> {
    let descending = |a: &f32, b: &f32| b.total_cmp(a);
    let mut maxima = vec![0.0; t.len().div_ceil(CHUNK)];
    chunk_maxima(&mut maxima, t);
    let threshold = match maxima.len() < k {
        true => f32::NEG_INFINITY,
        false => *maxima.clone().select_nth_unstable_by(k - 1, descending).1,
    };
    let mut found: Vec<(u32, f32)> = Vec::with_capacity(2 * k);
    for (c, (chunk, _)) in
        t.chunks(CHUNK).zip(&maxima).enumerate().filter(|(_, (_, max))| **max >= threshold)
    {
        let id = |i: usize| (c * CHUNK + i) as u32;
        // What is no number is among them, so that there are always `k`; statistics tell of it.
        let above = chunk.iter().enumerate().filter(|(_, t)| **t >= threshold || t.is_nan());
        found.extend(above.map(|(i, t)| (id(i), *t)));
    }
    if found.len() > k {
        let rank = |a: &(u32, f32), b: &(u32, f32)| descending(&a.1, &b.1).then(a.0.cmp(&b.0));
        found.select_nth_unstable_by(k - 1, rank);
        found.truncate(k);
        found.sort_unstable_by_key(|e| e.0);
    }
    found
}

/// Draws from softmax(t / tau) by inversion, plane by plane, ids ascending: `uniforms` in [0, 1), each
/// of a plane, meet the cumulative distribution, whose largest logit is `max`. Only chunks of entries that one of them
/// falls into are walked entry by entry.
fn drawn(
    t: &[f32],
    max: f32,
    inverse_tau: f32,
    mut uniforms: Vec<(f64, usize)>,
    planes: usize,
) -> Vec<Vec<DrawnId>> {
    let mut sums = vec![0.0; t.len().div_ceil(CHUNK)];
    chunk_sums(&mut sums, t, max, inverse_tau);
    let total: f64 = sums.iter().sum();
    uniforms.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let mut waiting = uniforms.into_iter().map(|(u, plane)| (u * total, plane)).peekable();
    let mut out: Vec<Vec<DrawnId>> = vec![Vec::new(); planes];
    let (mut before, mut mass) = (0.0, [0.0; CHUNK]);
    // Where rounding leaves a draw beyond the sums, it is of the last chunk that has any mass.
    let last = sums.iter().rposition(|sum| *sum > 0.0).unwrap_or(0);
    for (c, (chunk, sum)) in t.chunks(CHUNK).zip(&sums).enumerate() {
        let end = if c == last { f64::INFINITY } else { before + sum };
        if waiting.peek().is_some_and(|u| u.0 < end) {
            let mass = &mut mass[..chunk.len()];
            exponentials(mass, chunk, max, inverse_tau);
            // Likewise of the last such entry of its chunk.
            let final_one = mass.iter().rposition(|m| *m > 0.0).unwrap_or(0);
            let mut cumulative = before;
            for (i, mass) in mass.iter().enumerate() {
                cumulative += f64::from(*mass);
                let end = if i == final_one { end } else { cumulative.min(end) };
                let id = (c * CHUNK + i) as u32;
                while let Some((_, plane)) = waiting.next_if(|u| u.0 < end) {
                    match out[plane].last_mut().filter(|d| d.id == id) {
                        Some(drawn) => drawn.count += 1,
                        None => out[plane].push(DrawnId { id, count: 1 }),
                    }
                }
            }
        }
        before += sum;
    }
    out
}

multiversion! {
    fn chunk_maxima(out: &mut [f32], t: &[f32]) {
        for (out, chunk) in out.iter_mut().zip(t.chunks(CHUNK)) {
            let mut largest = [f32::NEG_INFINITY; LANES];
            let (lines, tail) = chunk.as_chunks::<LANES>();
            for line in lines {
                for l in 0..LANES {
                    largest[l] = if line[l] > largest[l] { line[l] } else { largest[l] };
                }
            }
            for (l, &t) in tail.iter().enumerate() {
                largest[l] = if t > largest[l] { t } else { largest[l] };
            }
            *out = largest.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        }
    }

    fn chunk_sums(out: &mut [f64], t: &[f32], max: f32, inverse_tau: f32) {
        for (out, chunk) in out.iter_mut().zip(t.chunks(CHUNK)) {
            let mut sum = [0.0f32; LANES];
            let (lines, tail) = chunk.as_chunks::<LANES>();
            for line in lines {
                for l in 0..LANES {
                    sum[l] += exp((line[l] - max) * inverse_tau);
                }
            }
            for (l, &t) in tail.iter().enumerate() {
                sum[l] += exp((t - max) * inverse_tau);
            }
            *out = f64::from(sum_lanes(sum));
        }
    }

    fn exponentials(out: &mut [f32], t: &[f32], max: f32, inverse_tau: f32) {
        for (out, t) in out.iter_mut().zip(t) {
            *out = exp((t - max) * inverse_tau);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_fall_where_the_cumulative_distribution_says() {
        // Entry i has mass i + 1, but every fifth has none; an odd end.
        let n = 3 * CHUNK + 7;
        let weight = |i: usize| if i % 5 == 2 { 0.0 } else { (i + 1) as f64 };
        let t: Vec<f32> = (0..n)
            .map(|i| if i % 5 == 2 { -1e4 } else { (weight(i) / n as f64).ln() as f32 })
            .collect();
        let max = t.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = (0..n).map(weight).sum();
        let uniforms: Vec<f64> = (0..2000).map(|i| (i as f64 * 0.618_033_9).fract()).collect();
        let mut want = vec![0u32; n];
        for u in &uniforms {
            let mut sum = 0.0;
            want[(0..n)
                .position(|i| {
                    sum += weight(i);
                    u * total < sum
                })
                .unwrap()] += 1;
        }
        let uniforms = uniforms.into_iter().map(|u| (u, 0)).collect();
        let found = drawn(&t, max, 1.0, uniforms, 1).remove(0);
        assert!(found.windows(2).all(|w| w[0].id < w[1].id) && found.iter().all(|d| d.count > 0));
        assert_eq!(found.iter().map(|d| d.count).sum::<u32>(), 2000);
        let mut got = vec![0u32; n];
        found.iter().for_each(|d| got[d.id as usize] = d.count);
        let moved: u32 = got.iter().zip(&want).map(|(a, b)| a.abs_diff(*b)).sum();
        assert!(moved <= 2, "{moved} draws lie elsewhere: more than rounding moves");
        assert!((0..n).filter(|i| i % 5 == 2).all(|i| got[i] == 0), "no mass, no draw");
    }

    #[test]
    fn draws_that_rounding_leaves_over_are_of_the_last_entry_with_mass() {
        // Uniforms of 1 lie beyond every sum.
        let mut t = vec![-1e4; 2 * CHUNK + 3];
        (t[1], t[CHUNK + 5]) = (0.0, 0.0);
        let found = drawn(&t, 0.0, 1.0, vec![(1.0, 0), (0.2, 0), (1.0, 0)], 1).remove(0);
        let [a, b] = [DrawnId { id: 1, count: 1 }, DrawnId { id: CHUNK as u32 + 5, count: 2 }];
        assert_eq!(found, [a, b]);
    }

    #[test]
    fn the_largest_are_the_largest_whatever_the_ties() {
        for (n, values) in [(1, 1), (5, 3), (CHUNK, 1), (700, 4), (1000, 977), (3001, 50)] {
            let t: Vec<f32> = (0..n).map(|i| ((i * 7919) % values) as f32 - 2.0).collect();
            for k in [1, 2, 7, 23, 24, 25, 700].into_iter().filter(|k| *k <= n) {
                let mut order: Vec<u32> = (0..n as u32).collect();
                let of = |id: u32| t[id as usize];
                order.sort_by(|&a, &b| of(b).total_cmp(&of(a)).then(a.cmp(&b)));
                order.truncate(k);
                order.sort_unstable();
                let found = largest(&t, k);
                assert_eq!(found.iter().map(|e| e.0).collect::<Vec<_>>(), order, "{k} of {n}");
                assert!(found.iter().all(|e| e.1 == of(e.0)));
            }
        }
        assert_eq!(largest(&[f32::NAN; 300], 3).len(), 3, "no panic");
    }
}
