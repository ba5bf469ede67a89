//! From dense teacher logits to the sparse signals: one pass over the vocabulary that stores no
//! more than it returns.

use super::cpu::{TILE, Tiles};
use super::{Logits, RowStats, cuda, reference};
use crate::error::{Error, Result};
use crate::loss::signal::{DrawnId, Said, Sampled, TopK};
use crate::ops::Backend;
use crate::ops::simd::{exp, multiversion};
use crate::rng::Rng;
use rayon::prelude::*;

/// How a row's logits become log probabilities: (max, ln sum exp((t - max) / tau), 1 / tau).
#[derive(Clone, Copy)]
struct Scale {
    max: f32,
    log_sum: f32,
    inverse_tau: f32,
}

impl Scale {
    fn new(stats: &RowStats, tau: f32) -> Self {
        Self { max: stats.teacher.max, log_sum: stats.teacher.log_sum_tau, inverse_tau: 1.0 / tau }
    }

    fn log(self, t: f32) -> f32 {
        (t - self.max) * self.inverse_tau - self.log_sum
    }
}

/// The `k` largest entries of each row of `teacher`, whose scan at `tau` gave `stats`; of equal
/// ones the lower ids.
pub fn top_k(teacher: &Logits, stats: &[RowStats], tau: f32, k: usize) -> Result<TopK> {
    check(teacher, stats)?;
    let vocab = teacher.vocab();
    let k = k.clamp(1, vocab);
    let backend = Backend::of(&teacher.hidden);
    if backend == Backend::Gpu {
        let (ids, logits) = cuda::largest(teacher, k)?;
        return Ok(of_largest(ids, &logits, stats, tau, k, vocab));
    }
    let mut rows: Vec<Top> = stats.iter().map(|_| Top::new(k)).collect();
    if backend == Backend::Cpu {
        let mut tiles = Tiles::new(teacher, false)?;
        for start in (0..vocab).step_by(TILE) {
            let t = tiles.tile(start);
            rows.par_iter_mut().enumerate().for_each(|(i, row)| row.add(t.row(i), start));
        }
    } else {
        for (row, t) in rows.iter_mut().zip(reference::host_rows(teacher)?) {
            row.add(&t, 0);
        }
    }
    let (logits, ids): (Vec<f32>, Vec<u32>) = rows.into_iter().flat_map(Top::finish).unzip();
    Ok(of_largest(ids, &logits, stats, tau, k, vocab))
}

/// From the `k` largest logits of each row, by ascending id: their probabilities, quantised.
fn of_largest(
    ids: Vec<u32>,
    logits: &[f32],
    stats: &[RowStats],
    tau: f32,
    k: usize,
    vocab: usize,
) -> TopK {
    let (mut logp, mut rest) = (Vec::with_capacity(ids.len()), Vec::with_capacity(stats.len()));
    for (stats, logits) in stats.iter().zip(logits.chunks_exact(k)) {
        let scale = Scale::new(stats, tau);
        let level = |t: &f32| TopK::level(f64::from(scale.log(*t)).exp());
        let levels: Vec<u32> = logits.iter().map(level).collect();
        logp.extend(levels.iter().map(|s| TopK::logp_of(*s)));
        rest.push(if k == vocab { f32::NEG_INFINITY } else { TopK::rest_of(levels.into_iter()) });
    }
    TopK { k, ids, logp, rest, said: stats.iter().map(Said::of).collect() }
}

/// `draws` independent draws from each row of `teacher`, whose scan at `tau` gave `stats`. Draw s
/// of the row of token n is a function of the generator, s and n alone.
pub fn sample(
    teacher: &Logits,
    stats: &[RowStats],
    tau: f32,
    draws: u32,
    rng: Rng,
    tokens: &[u64],
) -> Result<Sampled> {
    check(teacher, stats)?;
    if tokens.len() != stats.len() {
        return Err(Error::internal("every row that is drawn from needs the number of its token"));
    }
    let rows = stats.iter().zip(tokens);
    let mut rows: Vec<Draws> = rows
        .map(|(s, &token)| Draws::new(Scale::new(s, tau), draws, |draw| uniform(rng, draw, token)))
        .collect();
    if Backend::of(&teacher.hidden) == Backend::Cpu {
        let mut tiles = Tiles::new(teacher, false)?;
        for start in (0..teacher.vocab()).step_by(TILE) {
            let t = tiles.tile(start);
            rows.par_iter_mut().enumerate().for_each(|(i, row)| row.add(t.row(i), start));
        }
    } else {
        for (row, t) in rows.iter_mut().zip(reference::host_rows(teacher)?) {
            row.add(&t, 0);
        }
    }
    let said = stats.iter().map(Said::of).collect();
    Ok(Sampled::of_rows(draws, rows.into_iter().map(Draws::finish), said))
}

fn check(teacher: &Logits, stats: &[RowStats]) -> Result<()> {
    if stats.len() == teacher.rows() {
        return Ok(());
    }
    Err(Error::internal("statistics and rows of a teacher's signal differ in number"))
}

/// In [0, 1), with 53 random bits.
fn uniform(rng: Rng, draw: u32, token: u64) -> f64 {
    (rng.bits(draw, token) >> 11) as f64 / (1u64 << 53) as f64
}

/// The largest entries of the tiles seen so far.
struct Top {
    k: usize,
    /// (logit, id): at least the k largest, once so many were seen.
    candidates: Vec<(f32, u32)>,
    /// The k-th largest logit when the candidates were last sorted out.
    threshold: f32,
}

impl Top {
    fn new(k: usize) -> Self {
        Self { k, candidates: Vec::new(), threshold: f32::NEG_INFINITY }
    }

    fn add(&mut self, t: &[f32], start: usize) {
        // An equal one comes later than those it equals, so it stays outside.
        let full = self.candidates.len() == self.k;
        let above = t.iter().enumerate().filter(|(_, t)| !full || **t > self.threshold);
        self.candidates.extend(above.map(|(i, t)| (*t, (start + i) as u32)));
        if self.candidates.len() > self.k {
            let rank = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
            let (_, last, _) = self.candidates.select_nth_unstable_by(self.k - 1, rank);
            self.threshold = last.0;
            self.candidates.truncate(self.k);
        }
    }

    /// The entries, by id.
    fn finish(mut self) -> Vec<(f32, u32)> {
        self.candidates.sort_unstable_by_key(|e| e.1);
        self.candidates
    }
}

/// Draws by inversion: uniforms in ascending order meet the cumulative distribution.
struct Draws {
    scale: Scale,
    /// Uniforms times the total, descending: the next one is the last.
    waiting: Vec<f64>,
    cumulative: f64,
    drawn: Vec<DrawnId>,
    /// The last entry with any mass: rounding may leave a draw beyond the sum.
    last: Option<u32>,
}

impl Draws {
    fn new(scale: Scale, draws: u32, uniform: impl Fn(u32) -> f64) -> Self {
        let total = f64::from(scale.log_sum).exp();
        let mut waiting: Vec<f64> = (0..draws).map(|draw| total * uniform(draw)).collect();
        waiting.sort_unstable_by(|a, b| b.total_cmp(a));
        Self { scale, waiting, cumulative: 0.0, drawn: Vec::new(), last: None }
    }

    fn add(&mut self, t: &[f32], start: usize) {
        let mut mass = vec![0.0; t.len()];
        exponentials(&mut mass, t, self.scale.max, self.scale.inverse_tau);
        for (i, mass) in mass.iter().enumerate() {
            if *mass == 0.0 {
                continue;
            }
            self.cumulative += f64::from(*mass);
            let id = (start + i) as u32;
            let mut count = 0;
            while self.waiting.last().is_some_and(|u| *u < self.cumulative) {
                self.waiting.pop();
                count += 1;
            }
            if count > 0 {
                self.drawn.push(DrawnId { id, count });
            }
            self.last = Some(id);
        }
    }

    fn finish(mut self) -> Vec<DrawnId> {
        let left = self.waiting.len() as u32;
        if let (Some(id), true) = (self.last, left > 0) {
            match self.drawn.last_mut().filter(|d| d.id == id) {
                Some(drawn) => drawn.count += left,
                None => self.drawn.push(DrawnId { id, count: left }),
            }
        }
        self.drawn
    }
}

multiversion! {
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
    fn draws_that_rounding_leaves_over_are_of_the_last_entry() {
        // Four equal entries, and a sum that is said to be a little larger than theirs.
        let scale = Scale { max: 0.0, log_sum: 4.001f32.ln(), inverse_tau: 1.0 };
        let mut draws = Draws::new(scale, 4, |i| [0.1, 0.9, 0.99999, 0.99999][i as usize]);
        draws.add(&[0.0; 4], 0);
        let drawn: Vec<(u32, u32)> = draws.finish().iter().map(|d| (d.id, d.count)).collect();
        assert_eq!(drawn, [(0, 1), (3, 3)]);
    }
}
