//! Means, spreads and paired tests over seeds.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Mean and spread of one figure over the seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Number of values.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Standard deviation, with n - 1; None for one value.
    pub sd: Option<f64>,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

impl Spread {
    /// None without values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
        Some(Self {
            n,
            mean,
            sd: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }
}

/// The mean of paired differences, and what a t-test says of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// Pairs.
    pub n: usize,
    /// Mean difference.
    pub mean: f64,
    /// None with a single pair, and where all differences are the same: there is no spread to test
    /// against.
    pub test: Option<Test>,
}

/// A two-sided paired t-test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Test {
    /// Mean over its standard error.
    pub t: f64,
    /// Probability of a t at least as far from 0 if there is no difference.
    pub p: f64,
    /// `p` times what Holm's procedure asks for among all the tests of a report; see [`holm`].
    pub p_holm: f64,
    /// Lower end of the 95 % interval of the mean difference.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Difference {
    /// Of the differences themselves, one per seed; None without any.
    pub fn of(differences: &[f64]) -> Option<Self> {
        let Spread { n, mean, sd, .. } = Spread::of(differences)?;
        let test = sd.filter(|sd| *sd > 0.0).and_then(|sd| {
            let error = sd / (n as f64).sqrt();
            let t = mean / error;
            let law = StudentsT::new(0.0, 1.0, (n - 1) as f64).ok()?;
            let p = (2.0 * law.cdf(-t.abs())).min(1.0);
            let reach = law.inverse_cdf(0.975) * error;
            Some(Test { t, p, p_holm: p, low: mean - reach, high: mean + reach })
        });
        Some(Self { n, mean, test })
    }
}

/// Holm's step-down correction in place: of m tests, the smallest p counts m times, the next m - 1
/// times, and so on, never less than the one before and never more than 1. Keeps the chance of any
/// false finding at the level of one test.
pub fn holm(tests: &mut [&mut Test]) {
    tests.sort_by(|a, b| a.p.total_cmp(&b.p));
    let (m, mut least) = (tests.len(), 0.0f64);
    for (i, test) in tests.iter_mut().enumerate() {
        least = least.max(test.p * (m - i) as f64).min(1.0);
        test.p_holm = least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_of_few_values() {
        let s = Spread::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        assert_eq!((s.n, s.mean, s.min, s.max), (8, 5.0, 2.0, 9.0));
        assert!((s.sd.unwrap() - (32.0f64 / 7.0).sqrt()).abs() < 1e-15);
        assert_eq!(Spread::of(&[3.0]).unwrap().sd, None);
        assert_eq!(Spread::of(&[]), None);
    }

    /// Student's own sleep data (Biometrika 1908): R's `t.test(extra ~ group, paired = TRUE)`
    /// prints t = -4.0621, df = 9, p-value = 0.002833, 95 percent interval -2.4598858 -0.7001142.
    #[test]
    fn the_paired_test_agrees_with_students_sleep_data() {
        let first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0];
        let second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4];
        let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| a - b).collect();
        let found = Difference::of(&differences).unwrap();
        let test = found.test.unwrap();
        assert!((found.mean + 1.58).abs() < 1e-12 && (test.t + 4.0621).abs() < 5e-5, "{found:?}");
        assert!((test.p - 0.002833).abs() < 5e-7, "{found:?}");
        assert!(
            (test.low + 2.4598858).abs() < 5e-8 && (test.high + 0.7001142).abs() < 5e-8,
            "{found:?}"
        );
    }

    #[test]
    fn few_seeds_are_tested_with_the_laws_that_belong_to_them() {
        // Two pairs: one degree of freedom, Cauchy's law; t = 3 gives p = 1 - 2 atan(3) / pi.
        let two = Difference::of(&[1.0, 2.0]).unwrap().test.unwrap();
        assert!((two.t - 3.0).abs() < 1e-12);
        assert!((two.p - (1.0 - 2.0 * 3f64.atan() / std::f64::consts::PI)).abs() < 1e-9, "{two:?}");
        assert!((two.high - (1.5 + 12.706_204_736 * 0.5)).abs() < 1e-6, "{two:?}");
        // Three: t of two degrees has p = 1 - t / sqrt(2 + t^2).
        let three = Difference::of(&[1.0, 2.0, 4.0]).unwrap().test.unwrap();
        assert!(
            (three.p - (1.0 - three.t / (2.0 + three.t * three.t).sqrt())).abs() < 1e-9,
            "{three:?}"
        );
        assert_eq!(Difference::of(&[0.5]).unwrap().test, None);
        assert_eq!(Difference::of(&[0.5, 0.5]).unwrap().test, None, "no spread, no test");
        assert_eq!(Difference::of(&[]), None);
    }

    #[test]
    fn holm_steps_down() {
        let test = |p| Test { t: 0.0, p, p_holm: p, low: 0.0, high: 0.0 };
        let mut tests = [test(0.04), test(0.01), test(0.03), test(0.6)];
        holm(&mut tests.iter_mut().collect::<Vec<_>>());
        // Sorted: 0.01 x 4, 0.03 x 3, 0.04 x 2 (not below the one before), 0.6 x 1.
        let found = tests.map(|t| t.p_holm);
        let wanted = [0.09, 0.04, 0.09, 0.6];
        assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
    }
}
