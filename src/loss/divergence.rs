//! Divergences between the teacher's distribution q and the student's p, in log space.
//!
//! A divergence D = sum_v d(p_v, q_v) is known by two numbers per entry of the vocabulary, both
//! from (log p, log q) alone: its term d and g = p h, where h = dD/dp up to a constant (which
//! softmax ignores), chosen so that h = 0 at p = q. With G = sum_v g_v, the gradient with respect
//! to student logits divided by the temperature is `g - p G`. So a row is walked twice: once for
//! the sums (D, G), once for the gradient; and at p = q every g is exactly 0. A term may hold a
//! multiple of p - q, which adds up to nothing over a row, such that h is its slope: the rounding
//! of the normalisers, up to 1e-6 of every p, then reaches D in second order only.
//!
//! | D | definition | h |
//! |---|---|---|
//! | forward KL | KL(q, p) | 1 - q/p |
//! | reverse KL | KL(p, q) | ln p/q |
//! | JSD(beta) | beta KL(q, m) + (1-beta) KL(p, m), m = beta q + (1-beta) p | (1-beta) ln p/m |
//! | skewed KL(a) | KL(q, m), m = a q + (1-a) p | (1-a) (1 - q/m) |
//! | skewed reverse KL(a) | KL(p, m), m = a p + (1-a) q | ln p/m + a (1 - p/m) |
//! | total variation | sum abs(p - q) / 2 | sign(p - q) / 2 |
//!
//! JSD(beta) is that of GKD (Agarwal et al., arXiv 2306.13649), the skewed divergences those of
//! DistiLLM (Ko et al., arXiv 2402.03898). No ratio is formed from probabilities, so logits of any
//! size and any temperature are fine.

use crate::config::{Divergence as Word, ObjectivePlan};
use crate::ops::simd::{LANES, exp, ln, multiversion, sum_lanes};

/// What run files, kernels and documentation know a divergence by. Its meaning is
/// [`Word::meaning`].
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its word in a run file.
    pub word: Word,
    /// Its number in `divergence.cuh`.
    pub code: u32,
    /// The key of a run file that holds its parameter, if it has one.
    pub parameter: Option<&'static str>,
    /// The divergence that a plan asks for with this word.
    pub of: fn(&ObjectivePlan) -> Divergence,
}

/// Every divergence, in the order of the words.
pub const TABLE: [Row; Word::ALL.len()] = [
    Row { word: Word::ForwardKl, code: 0, parameter: None, of: |_| Divergence::ForwardKl },
    Row { word: Word::ReverseKl, code: 1, parameter: None, of: |_| Divergence::ReverseKl },
    Row {
        word: Word::Jsd,
        code: 2,
        parameter: Some("objective.beta"),
        of: |plan| Divergence::Jsd { beta: plan.beta as f32 },
    },
    Row {
        word: Word::SkewKl,
        code: 3,
        parameter: Some("objective.skew"),
        of: |plan| Divergence::SkewKl { skew: plan.skew as f32 },
    },
    Row {
        word: Word::SkewReverseKl,
        code: 4,
        parameter: Some("objective.skew"),
        of: |plan| Divergence::SkewReverseKl { skew: plan.skew as f32 },
    },
    Row { word: Word::Tv, code: 5, parameter: None, of: |_| Divergence::TotalVariation },
];

// A word's place among the words is its row's place in the table.
const _: () = {
    let mut i = 0;
    while i < TABLE.len() {
        assert!(TABLE[i].word as usize == i, "a row of the table stands where another word does");
        i += 1;
    }
};

/// A divergence with its parameter.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Divergence {
    /// KL(q || p).
    #[default]
    ForwardKl,
    /// KL(p || q).
    ReverseKl,
    /// Generalised Jensen-Shannon divergence; `beta` in (0, 1) is the teacher's share of the
    /// mixture.
    Jsd {
        /// Share of q in m.
        beta: f32,
    },
    /// KL(q || m), `skew` in [0, 1) the share of q in m.
    SkewKl {
        /// Share of q in m.
        skew: f32,
    },
    /// KL(p || m), `skew` in [0, 1) the share of p in m.
    SkewReverseKl {
        /// Share of p in m.
        skew: f32,
    },
    /// Half the sum of absolute differences; its gradient at p = q is taken as 0.
    TotalVariation,
}

/// The sums of a row: its divergence, and what its gradient needs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RowDivergence {
    /// D.
    pub value: f64,
    /// G = sum of g.
    pub gradient: f64,
}

/// How logits become log probabilities at the temperature: `(z - max) / tau - log_sum_tau`, student
/// and teacher.
#[derive(Debug, Clone, Copy)]
pub struct Normal {
    /// Largest logit and log normaliser of the student.
    pub student: (f32, f32),
    /// Largest logit and log normaliser of the teacher.
    pub teacher: (f32, f32),
    /// 1 / tau.
    pub inverse_tau: f32,
}

impl Normal {
    #[inline(always)]
    fn logs(&self, z: f32, t: f32) -> (f32, f32) {
        let log_p = (z - self.student.0) * self.inverse_tau - self.student.1;
        let log_q = (t - self.teacher.0) * self.inverse_tau - self.teacher.1;
        (log_p, log_q)
    }
}

impl Divergence {
    /// What a plan's word and parameters mean.
    pub fn of(plan: &ObjectivePlan) -> Self {
        (TABLE[plan.divergence as usize].of)(plan)
    }

    /// Its number in `divergence.cuh` and its parameter there, 0 where it has none.
    pub fn code(self) -> (u32, f32) {
        let (word, parameter) = match self.plain() {
            Self::ForwardKl => (Word::ForwardKl, 0.0),
            Self::ReverseKl => (Word::ReverseKl, 0.0),
            Self::Jsd { beta } => (Word::Jsd, beta),
            Self::SkewKl { skew } => (Word::SkewKl, skew),
            Self::SkewReverseKl { skew } => (Word::SkewReverseKl, skew),
            Self::TotalVariation => (Word::Tv, 0.0),
        };
        (TABLE[word as usize].code, parameter)
    }

    /// Whether a row's sums (D, G) must be formed before its gradient. Not for forward KL: the scan
    /// has formed D, and G is 0.
    pub(crate) fn needs_sums(self) -> bool {
        self.plain() != Self::ForwardKl
    }

    /// Itself, or what it is without a skew: the plain divergence.
    fn plain(self) -> Self {
        match self {
            Self::SkewKl { skew } if skew < SMALLEST => Self::ForwardKl,
            Self::SkewReverseKl { skew } if skew < SMALLEST => Self::ReverseKl,
            other => other,
        }
    }

    /// Term and g of one entry; both logarithms finite. The one implementation: rows of logits are
    /// loops over it.
    pub fn entry(self, log_p: f32, log_q: f32) -> (f32, f32) {
        self.with(One { log_p, log_q })
    }

    /// Adds up `entry` over a stretch of a row of logits: (D, G).
    pub fn sums(self, z: &[f32], t: &[f32], normal: &Normal) -> (f32, f32) {
        row_sums(self, z, t, normal)
    }

    /// `out += scale (g - p G)` over a stretch of a row, `total` = G.
    pub fn add_gradient(
        self,
        out: &mut [f32],
        z: &[f32],
        t: &[f32],
        normal: &Normal,
        total: f32,
        scale: f32,
    ) {
        row_gradient(self, out, z, t, normal, total, scale);
    }

    /// Runs `walk` with the formulas of this divergence.
    #[inline(always)]
    fn with<W: Walk>(self, walk: W) -> W::Out {
        match self.plain() {
            Self::ForwardKl => walk.run(Forward),
            Self::ReverseKl => walk.run(Reverse),
            Self::Jsd { beta } => walk.run(JensenShannon(Blend::new(beta))),
            Self::SkewKl { skew } => walk.run(SkewForward(Blend::new(skew))),
            Self::SkewReverseKl { skew } => walk.run(SkewReverse(Blend::new(skew))),
            Self::TotalVariation => walk.run(Variation),
        }
    }
}

/// Shares below this count as this: with them exp(-87), the smallest that f32 holds, is still
/// without weight.
const SMALLEST: f32 = 1e-30;

/// The formulas of a divergence for one entry.
trait Entry: Copy {
    /// (term, g) for a = log p and b = log q.
    fn at(self, a: f32, b: f32) -> (f32, f32);
}

/// Something done with a divergence's formulas, compiled for each of them.
trait Walk {
    type Out;
    fn run<E: Entry>(self, entry: E) -> Self::Out;
}

struct One {
    log_p: f32,
    log_q: f32,
}

impl Walk for One {
    type Out = (f32, f32);

    fn run<E: Entry>(self, entry: E) -> (f32, f32) {
        entry.at(self.log_p, self.log_q)
    }
}

/// m = share x + (1 - share) y, seen from x and from y.
#[derive(Clone, Copy)]
struct Blend {
    share: f32,
    rest: f32,
}

impl Blend {
    #[inline(always)]
    fn new(share: f32) -> Self {
        let share = share.clamp(SMALLEST, 1.0 - f32::EPSILON);
        Self { share, rest: 1.0 - share }
    }

    /// (ln m/x, ln m/y) from ln x and ln y.
    #[inline(always)]
    fn logs(self, x: f32, y: f32) -> (f32, f32) {
        let d = x - y;
        let (high, low) = if d >= 0.0 { (self.share, self.rest) } else { (self.rest, self.share) };
        // Relative to the larger of the two.
        let m = ln(high + low * exp(-d.abs()));
        if d >= 0.0 { (m, m + d) } else { (m - d, m) }
    }
}

#[derive(Clone, Copy)]
struct Forward;
#[derive(Clone, Copy)]
struct Reverse;
/// The share is the teacher's.
#[derive(Clone, Copy)]
struct JensenShannon(Blend);
/// The share is the teacher's.
#[derive(Clone, Copy)]
struct SkewForward(Blend);
/// The share is the student's.
#[derive(Clone, Copy)]
struct SkewReverse(Blend);
#[derive(Clone, Copy)]
struct Variation;

impl Entry for Forward {
    #[inline(always)]
    fn at(self, a: f32, b: f32) -> (f32, f32) {
        let (p, q) = (exp(a), exp(b));
        (q * (b - a) + (p - q), p - q)
    }
}

impl Entry for Reverse {
    #[inline(always)]
    fn at(self, a: f32, b: f32) -> (f32, f32) {
        let (p, q) = (exp(a), exp(b));
        let g = p * (a - b);
        (g - (p - q), g)
    }
}

impl Entry for JensenShannon {
    #[inline(always)]
    fn at(self, a: f32, b: f32) -> (f32, f32) {
        let (of_q, of_p) = self.0.logs(b, a);
        let g = -self.0.rest * exp(a) * of_p;
        (g - self.0.share * exp(b) * of_q, g)
    }
}

impl Entry for SkewForward {
    #[inline(always)]
    fn at(self, a: f32, b: f32) -> (f32, f32) {
        let (p, q) = (exp(a), exp(b));
        let (of_q, _) = self.0.logs(b, a);
        (self.0.rest * (p - q) - q * of_q, self.0.rest * p * (1.0 - exp(-of_q)))
    }
}

impl Entry for SkewReverse {
    #[inline(always)]
    fn at(self, a: f32, b: f32) -> (f32, f32) {
        let (p, q) = (exp(a), exp(b));
        let (of_p, _) = self.0.logs(a, b);
        (-self.0.rest * (p - q) - p * of_p, p * (self.0.share * (1.0 - exp(-of_p)) - of_p))
    }
}

impl Entry for Variation {
    #[inline(always)]
    fn at(self, a: f32, b: f32) -> (f32, f32) {
        let (p, q) = (exp(a), exp(b));
        let half = if a > b { 0.5 } else { -0.5 };
        (0.5 * (p - q).abs(), if a == b { 0.0 } else { half * p })
    }
}

struct Add<'a> {
    z: &'a [f32],
    t: &'a [f32],
    normal: &'a Normal,
}

impl Walk for Add<'_> {
    type Out = (f32, f32);

    #[inline(always)]
    fn run<E: Entry>(self, entry: E) -> (f32, f32) {
        let (mut value, mut gradient) = ([0.0f32; LANES], [0.0f32; LANES]);
        let (z, t) = (self.z.chunks_exact(LANES), self.t.chunks_exact(LANES));
        let (z_tail, t_tail) = (z.remainder(), t.remainder());
        for (z, t) in z.zip(t) {
            for l in 0..LANES {
                let (a, b) = self.normal.logs(z[l], t[l]);
                let (term, g) = entry.at(a, b);
                value[l] += term;
                gradient[l] += g;
            }
        }
        for (l, (z, t)) in z_tail.iter().zip(t_tail).enumerate() {
            let (a, b) = self.normal.logs(*z, *t);
            let (term, g) = entry.at(a, b);
            value[l] += term;
            gradient[l] += g;
        }
        (sum_lanes(value), sum_lanes(gradient))
    }
}

struct Spread<'a> {
    out: &'a mut [f32],
    z: &'a [f32],
    t: &'a [f32],
    normal: &'a Normal,
    total: f32,
    scale: f32,
}

impl Walk for Spread<'_> {
    type Out = ();

    #[inline(always)]
    fn run<E: Entry>(self, entry: E) {
        for ((out, z), t) in self.out.iter_mut().zip(self.z).zip(self.t) {
            let (a, b) = self.normal.logs(*z, *t);
            let (_, g) = entry.at(a, b);
            *out += self.scale * (g - exp(a) * self.total);
        }
    }
}

multiversion! {
    fn row_sums(divergence: Divergence, z: &[f32], t: &[f32], normal: &Normal) -> (f32, f32) {
        divergence.with(Add { z, t, normal })
    }

    fn row_gradient(
        divergence: Divergence,
        out: &mut [f32],
        z: &[f32],
        t: &[f32],
        normal: &Normal,
        total: f32,
        scale: f32,
    ) {
        divergence.with(Spread { out, z, t, normal, total, scale })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load};

    const ALL: [Divergence; 11] = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::Jsd { beta: 0.5 },
        Divergence::Jsd { beta: 0.05 },
        Divergence::Jsd { beta: 1.0 - 1e-7 },
        Divergence::SkewKl { skew: 0.0 },
        Divergence::SkewKl { skew: 0.1 },
        Divergence::SkewKl { skew: 0.9 },
        Divergence::SkewReverseKl { skew: 1e-29 },
        Divergence::SkewReverseKl { skew: 0.3 },
        Divergence::TotalVariation,
    ];

    /// An objective with this word, a beta of 0.25 and a skew of 0.125.
    fn objective(word: Word) -> ObjectivePlan {
        let mut overrides = Overrides::default();
        for setting in ["beta=0.25", "skew=0.125", &format!("divergence={word}")] {
            overrides.set(&format!("objective.{setting}")).unwrap();
        }
        load(None, &overrides).unwrap().plan.objective
    }

    #[test]
    fn the_parameter_is_that_of_the_key_which_the_table_names() {
        for row in TABLE {
            let divergence = Divergence::of(&objective(row.word));
            let want = match row.parameter {
                None => 0.0,
                Some("objective.beta") => 0.25,
                Some("objective.skew") => 0.125,
                Some(other) => panic!("{}: no key {other}", row.word),
            };
            assert_eq!(divergence.code(), (row.code, want), "{}", row.word);
        }
    }

    #[test]
    fn kernels_have_the_tables_codes() {
        let source = include_str!("head/divergence.cuh");
        // Lines such as `case 2: walk(Jsd{Blend(share)}); break;`.
        let cases: Vec<(u32, &str)> = source
            .lines()
            .filter_map(|line| line.trim().strip_prefix("case ")?.split_once(": walk("))
            .map(|(code, rest)| (code.parse().unwrap(), rest.split('{').next().unwrap()))
            .collect();
        let name = |row: &Row| format!("{:?}", Divergence::of(&objective(row.word)));
        let names: Vec<String> = TABLE.iter().map(name).collect();
        let want: Vec<(u32, &str)> = TABLE
            .iter()
            .zip(&names)
            .map(|(row, name)| (row.code, name.split(' ').next().unwrap()))
            .collect();
        assert_eq!(cases, want);
    }

    #[test]
    fn equal_probabilities_add_nothing() {
        for divergence in ALL {
            for log in [-4e5, -100.0, -87.3, -20.0, -1.0, -1e-6, 0.0] {
                let (term, g) = divergence.entry(log, log);
                assert_eq!((term.abs(), g.abs()), (0.0, 0.0), "{divergence:?} at {log}");
            }
        }
    }

    #[test]
    fn every_pair_of_logarithms_has_finite_entries() {
        let logs = [-4e5, -1e4, -100.0, -88.0, -87.0, -30.0, -1.0, -1e-7, 0.0];
        for divergence in ALL {
            for a in logs {
                for b in logs {
                    let (term, g) = divergence.entry(a, b);
                    assert!(
                        term.is_finite() && g.is_finite(),
                        "{divergence:?} at {a}, {b}: {term}, {g}"
                    );
                }
            }
        }
    }

    #[test]
    fn g_is_p_times_the_slope_of_the_term() {
        const H: f64 = 1e-3;
        for divergence in ALL {
            let term = |p: f64, q: f64| f64::from(divergence.entry(p.ln() as f32, q.ln() as f32).0);
            let h =
                |p: f64, q: f64| f64::from(divergence.entry(p.ln() as f32, q.ln() as f32).1) / p;
            let slope =
                |p: f64, q: f64| (term(p * (1.0 + H), q) - term(p * (1.0 - H), q)) / (2.0 * H * p);
            for (p, q) in [(0.3, 0.2), (0.01, 0.5), (0.7, 0.1)] {
                let (got, want) = (h(p, q), slope(p, q));
                assert!(
                    (got - want).abs() < 2e-2 * want.abs().max(1.0),
                    "{divergence:?} at {p}, {q}: {got}, {want}"
                );
            }
        }
    }
}
