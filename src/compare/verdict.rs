//! Which arm to use, and how sure that is: one sentence from the results.
//!
//! The arm of lowest loss was chosen by looking, so it is tested against every other one, and p is
//! corrected (Holm) for all pairs of arms that could have been looked at.

use super::stats::{Difference, Test, holm};
use super::summary::{ArmResult, Summary};
use crate::report::text::signed;
use serde::Serialize;

/// Below this a p after Holm's correction is called a difference.
pub const LEVEL: f64 = 0.05;
/// A cost below this share of another's is less.
const CHEAPER: f64 = 0.98;
/// Nats by which the mean of an arm that is chosen for its cost may lie above the lowest: 2 % of
/// perplexity. What few seeds cannot tell apart may be far apart.
const NEAR: f64 = 0.02;

/// What the results say of the choice of an arm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Label of the arm to use.
    pub arm: String,
    /// Whether its loss is lower than that of every other arm, at 5 % after correction.
    pub sure: bool,
    /// The sentence.
    pub text: String,
}

/// Arm `other` beside the one of lowest loss.
struct Rival<'a> {
    arm: &'a ArmResult,
    /// The best one's loss less this one's.
    difference: Option<Difference>,
}

impl Rival<'_> {
    /// Whether its loss is higher beyond doubt.
    fn is_beaten(&self) -> bool {
        let shown = |d: Difference| d.mean < 0.0 && d.test.is_some_and(|t| t.p_holm < LEVEL);
        self.difference.is_some_and(shown)
    }

    /// Whether the two end alike, as arms do that come to the same steps.
    fn is_equal(&self) -> bool {
        self.difference.is_some_and(|d| d.mean == 0.0)
    }

    /// Whether its loss is about as low, as far as the means say.
    fn is_near(&self) -> bool {
        self.difference.is_some_and(|d| -d.mean <= NEAR)
    }

    fn is_tested(&self) -> bool {
        self.difference.is_some_and(|d| d.test.is_some())
    }
}

impl Verdict {
    /// Of the finished runs.
    pub fn of(s: &Summary) -> Self {
        let order = s.ranking();
        let best = &s.arms[order[0]];
        let pairs = s.arms.len() * (s.arms.len() - 1) / 2;
        let rivals = rivals(s, &order);
        let (sure, arm, text) = if rivals.is_empty() {
            let text = format!(
                "{} is the only arm with a finished run: nothing to choose from.",
                label(best)
            );
            (false, best, text)
        } else if rivals.iter().all(Rival::is_equal) {
            let text =
                "The arms end at the same loss, seed by seed: nothing differs between them yet.";
            (false, best, text.to_string())
        } else if rivals.iter().all(Rival::is_beaten) {
            (true, best, surely(best, &rivals, pairs))
        } else if rivals.iter().any(Rival::is_tested) {
            let (arm, text) = open(best, &rivals, pairs);
            (false, arm, text)
        } else {
            (false, best, untested(best, &rivals))
        };
        Self { arm: label(arm), sure, text }
    }
}

fn label(arm: &ArmResult) -> String {
    arm.arm.label.clone()
}

/// The other arms by loss, beside the first of `order`.
fn rivals<'a>(s: &'a Summary, order: &[usize]) -> Vec<Rival<'a>> {
    let mut pairs: Vec<(usize, usize, Option<Difference>)> = Vec::new();
    for (place, &i) in order.iter().enumerate() {
        pairs.extend(order[place + 1..].iter().map(|&j| (i, j, s.arms[i].difference(&s.arms[j]))));
    }
    let mut tests: Vec<&mut Test> =
        pairs.iter_mut().filter_map(|(_, _, d)| d.as_mut()?.test.as_mut()).collect();
    holm(&mut tests);
    let of_best = pairs.into_iter().filter(|(i, ..)| *i == order[0]);
    of_best.map(|(_, j, difference)| Rival { arm: &s.arms[j], difference }).collect()
}

fn surely(best: &ArmResult, rivals: &[Rival], pairs: usize) -> String {
    // The one that is nearest, by the mean over equal seeds.
    let mean = |r: &&Rival| r.difference.map_or(f64::NEG_INFINITY, |d| d.mean);
    let next = rivals.iter().max_by(|a, b| mean(a).total_cmp(&mean(b)));
    let Some((next, d, t)) = next.and_then(|r| Some((r, r.difference?, r.difference?.test?)))
    else {
        return String::new();
    };
    let others = match rivals.len() {
        1 => String::new(),
        n => format!(", and than that of the other {}", plural(n - 1, "arm")),
    };
    format!(
        "Use {}: validation loss lower than {}'s by {:.4} (95 % interval {:.4} to {:.4}, {}, {}){others}.",
        label(best),
        label(next.arm),
        -d.mean,
        -t.high,
        -t.low,
        plural(d.n, "seed"),
        p(t, pairs),
    )
}

/// Mean FLOPs of an arm's runs.
fn flops(arm: &ArmResult) -> f64 {
    arm.spread(|r| Some(r.metrics.flops)).map_or(f64::INFINITY, |s| s.mean)
}

/// The arm is as cheap as any of `arms`; whether it is the only one.
fn takes_the_fewest<'a>(arm: &ArmResult, mut arms: impl Iterator<Item = &'a ArmResult>) -> String {
    let equal = |other: &ArmResult| flops(other) <= flops(arm) && label(other) != label(arm);
    let words = if arms.any(equal) { "is among those that take" } else { "takes" };
    format!("{words} the fewest FLOPs")
}

/// Some arm is not told apart from the best: the cheapest of those that are near it is the one to
/// use.
fn open<'a>(best: &'a ArmResult, rivals: &[Rival<'a>], pairs: usize) -> (&'a ArmResult, String) {
    let even: Vec<&Rival> = rivals.iter().filter(|r| !r.is_beaten()).collect();
    let tested_seeds = even.iter().filter(|r| r.is_tested());
    let seeds = tested_seeds.filter_map(|r| r.difference.map(|d| d.n)).min().unwrap_or(0);
    let all = || std::iter::once(best).chain(even.iter().map(|r| r.arm));
    let near = || std::iter::once(best).chain(even.iter().filter(|r| r.is_near()).map(|r| r.arm));
    // Of those that cost about as little as the cheapest, the one of lowest loss.
    let cheapest = near().map(flops).fold(f64::INFINITY, f64::min);
    let arm = near().find(|arm| CHEAPER * flops(arm) <= cheapest).unwrap_or(best);
    let least = all().map(flops).fold(f64::INFINITY, f64::min);
    let dearest = all().map(flops).fold(0.0, f64::max);
    let (name, first) = (label(arm), label(best));
    let names: Vec<String> = all().map(label).collect();
    let tested = tested(best, &even, pairs);
    let seeds = if seeds == 0 { "so few seeds".to_string() } else { plural(seeds, "seed") };
    let text = if name == first {
        let fewest = flops(best) <= least && least < CHEAPER * dearest;
        let cost = match fewest {
            true => format!(" and {}", takes_the_fewest(best, all())),
            false => String::new(),
        };
        format!(
            "Use {name}, but that may be chance: it has the lowest mean validation loss{cost}, yet cannot be told apart from \
             {} with {seeds}{tested}",
            listed(&names[1..])
        )
    } else {
        let less = 100.0 * (1.0 - flops(arm) / flops(best));
        let (fewest, of_near) = match CHEAPER * flops(arm) <= least {
            true => (takes_the_fewest(arm, all()), String::new()),
            false => (
                takes_the_fewest(arm, near()),
                format!(" of those within {NEAR} of the lowest mean"),
            ),
        };
        format!(
            "Use {name} for its cost: {} cannot be told apart with {seeds}{tested}, and {name} {fewest}{of_near} \
             ({less:.0} % less than {first})",
            listed(&names)
        )
    };
    let rest = match rivals.len() - even.len() {
        0 => String::new(),
        n => format!(
            "; {} of higher loss than {first}",
            plural(n, "arm") + if n == 1 { " is" } else { " are" }
        ),
    };
    (arm, format!("{text}{rest}."))
}

/// What was tested without a finding, in brackets.
fn tested(best: &ArmResult, even: &[&Rival], pairs: usize) -> String {
    let [one] = even else {
        let untested: Vec<String> =
            even.iter().filter(|r| !r.is_tested()).map(|r| label(r.arm)).collect();
        if untested.len() == even.len() {
            return " (untested: too few equal seeds, or no spread)".into();
        }
        if !untested.is_empty() {
            return format!(
                " (no p below {LEVEL} after correction, and {} untested: too few equal seeds, or no spread)",
                listed(&untested)
            );
        }
        let pairs = plural(pairs, "pair");
        return format!(" (each p is at least {LEVEL} after correction for {pairs} of arms)");
    };
    match one.difference.and_then(|d| Some((d, d.test?))) {
        Some((d, t)) => format!(
            " ({}'s loss minus {}'s: {}, 95 % interval {} to {}, {})",
            label(best),
            label(one.arm),
            signed(d.mean, 4),
            signed(t.low, 4),
            signed(t.high, 4),
            p(t, pairs)
        ),
        None => " (untested: too few equal seeds, or no spread)".into(),
    }
}

/// Why no difference to baseline or control has a test.
pub(super) fn why_untested(s: &Summary) -> &'static str {
    let differences = s.arms.iter().flat_map(|a| [a.to_baseline, a.to_control]).flatten();
    match differences.map(|d| d.n).max() {
        None => "no other arm has a run with a seed of the baseline",
        Some(0 | 1) => {
            "that takes at least two seeds of both arms; what one seed says may be chance"
        }
        Some(_) => "each is the same for every seed, which leaves no spread to test against",
    }
}

/// No pair has a test.
fn untested(best: &ArmResult, rivals: &[Rival]) -> String {
    let Some(next) = rivals.first() else { return String::new() };
    let by = next.difference.map_or(0.0, |d| -d.mean);
    let seeds = rivals.iter().filter_map(|r| r.difference.map(|d| d.n)).min().unwrap_or(0);
    let (name, other) = (label(best), label(next.arm));
    if seeds >= 2 {
        return format!(
            "Use {name}, which nothing was tested against: the differences of {} have no spread (lower than {other}'s by \
             {by:.4}).",
            plural(seeds, "seed")
        );
    }
    format!(
        "Use {name} as a guess: it has the lowest validation loss, lower than {other}'s by {by:.4}, but one seed cannot say \
         whether that is chance; train at least 3 (--seeds 3)."
    )
}

fn p(test: Test, pairs: usize) -> String {
    let p =
        if test.p_holm < 0.001 { "p < 0.001".into() } else { format!("p = {:.3}", test.p_holm) };
    if pairs > 1 { format!("{p} after correction for {pairs} pairs of arms") } else { p }
}

/// `a`, `a and b`, `a, b and c`.
fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// `1 seed`, `2 seeds`.
pub fn plural(n: usize, one: &str) -> String {
    format!("{n} {one}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::testing::{arm, summary};

    fn verdict(arms: &[(&str, &[f64], f64)]) -> Verdict {
        Verdict::of(&summary(
            arms.iter().map(|(l, losses, flops)| arm(l, losses, *flops)).collect(),
        ))
    }

    #[test]
    fn a_clear_result_names_the_next_best_with_its_interval() {
        let v = verdict(&[("a", &[4.00, 4.01, 4.02], 1e9), ("b", &[4.20, 4.22, 4.21], 1e9)]);
        // Differences -0.20, -0.21, -0.19: mean -0.20, sd 0.01, t(2) = 4.3027, reach 0.02484.
        assert_eq!(
            (v.arm.as_str(), v.sure, v.text.as_str()),
            (
                "a",
                true,
                "Use a: validation loss lower than b's by 0.2000 (95 % interval 0.1752 to 0.2248, 3 seeds, p < 0.001)."
            )
        );
    }

    #[test]
    fn no_p_is_claimed_of_a_pair_without_a_test() {
        // As a comparison that was stopped: c has one seed, which tests nothing.
        let v =
            verdict(&[("a", &[4.00, 4.10], 1e9), ("b", &[4.02, 4.05], 1e9), ("c", &[4.03], 1e9)]);
        assert_eq!(
            v.text,
            "Use a, but that may be chance: it has the lowest mean validation loss, yet cannot be told apart from b and c with \
             2 seeds (no p below 0.05 after correction, and c untested: too few equal seeds, or no spread)."
        );
        // One arm is beaten, and none of the others has a test.
        let v = verdict(&[
            ("a", &[4.00, 4.01, 4.02], 1e9),
            ("b", &[4.50, 4.51, 4.53], 1e9),
            ("c", &[4.03], 1e9),
            ("d", &[4.04], 1e9),
        ]);
        assert!(v.text.contains("c and d with so few seeds (untested: too few"), "{}", v.text);
    }

    #[test]
    fn arms_that_end_alike_are_not_recommended() {
        for losses in [&[4.5][..], &[4.5, 4.25], &[4.5, 4.25, 4.0]] {
            let v = verdict(&[("a", losses, 1e9), ("b", losses, 1e9)]);
            assert!(!v.sure && v.text.contains("nothing differs between them yet"), "{}", v.text);
        }
    }

    #[test]
    fn arms_that_cannot_be_told_apart_are_chosen_by_cost() {
        let (a, b) = ([4.00, 4.10, 4.05], [4.02, 4.05, 4.11]);
        let said = |flops: f64, start: &str, end: &str| {
            let v = verdict(&[("a", &a, 1e9), ("b", &b, flops)]);
            assert!(!v.sure && v.text.starts_with(start) && v.text.ends_with(end), "{}", v.text);
            v.arm
        };
        let start = "Use b for its cost: a and b cannot be told apart with 3 seeds (a's loss minus b's: -0.0100, 95 % interval ";
        assert_eq!(said(0.6e9, start, ", and b takes the fewest FLOPs (40 % less than a)."), "b");
        // At equal cost the lower mean, without a claim.
        let start = "Use a, but that may be chance: it has the lowest mean validation loss, yet cannot be told apart from b with";
        assert_eq!(said(0.99e9, start, ")."), "a");
        let start = "Use a, but that may be chance: it has the lowest mean validation loss and takes the fewest FLOPs, yet";
        assert_eq!(said(2e9, start, ")."), "a");
        let v = verdict(&[("a", &a, 2e9), ("b", &b, 1e9), ("c", &[4.03, 4.06, 4.10], 1e9)]);
        let end = ", and b is among those that take the fewest FLOPs (50 % less than a).";
        assert!(v.text.ends_with(end), "{}", v.text);
    }

    #[test]
    fn what_is_far_off_is_not_chosen_for_its_cost_however_few_the_seeds() {
        let far = [4.30, 4.05, 4.50];
        let v = verdict(&[("a", &[4.00, 4.10, 4.05], 2e9), ("b", &far, 1e9)]);
        let start = "Use a, but that may be chance: it has the lowest mean validation loss, yet cannot be told apart from b";
        assert!(v.text.starts_with(start), "{}", v.text);
        let v = verdict(&[
            ("a", &[4.00, 4.10, 4.05], 2e9),
            ("c", &[4.02, 4.05, 4.11], 1.5e9),
            ("b", &far, 1e9),
        ]);
        let end = ", and c takes the fewest FLOPs of those within 0.02 of the lowest mean (25 % less than a).";
        assert!(v.text.ends_with(end), "{}", v.text);
    }

    #[test]
    fn the_correction_counts_every_pair_that_could_have_won() {
        // Two arms: p = 0.035. Beside two more, of as much noise, that is no difference any more.
        let (a, b) = ([4.00, 4.00, 4.00], [4.02, 4.03, 4.045]);
        assert!(verdict(&[("a", &a, 1e9), ("b", &b, 1e9)]).sure);
        let v = verdict(&[
            ("a", &a, 1e9),
            ("b", &b, 1e9),
            ("c", &[4.3, 4.0, 4.2], 1e9),
            ("d", &[4.4, 4.0, 4.3], 1e9),
        ]);
        assert!(!v.sure && v.text.contains("after correction for 6 pairs"), "{}", v.text);
    }

    #[test]
    fn what_is_beaten_is_not_among_the_even_ones() {
        let v = verdict(&[
            ("a", &[4.00, 4.10, 4.05, 4.07], 1e9),
            ("b", &[4.02, 4.05, 4.11, 4.06], 0.5e9),
            ("c", &[6.00, 6.10, 6.05, 6.08], 0.1e9),
        ]);
        assert_eq!((v.arm.as_str(), v.sure), ("b", false));
        assert!(
            v.text.starts_with("Use b for its cost: a and b cannot be told apart with 4 seeds"),
            "{}",
            v.text
        );
        assert!(v.text.ends_with("; 1 arm is of higher loss than a."), "{}", v.text);
    }

    #[test]
    fn several_even_ones_are_all_named() {
        let v = verdict(&[
            ("a", &[4.00, 4.10, 4.05], 1e9),
            ("b", &[4.02, 4.05, 4.11], 0.5e9),
            ("c", &[4.03, 4.12, 4.05], 0.501e9),
        ]);
        let start = "Use b for its cost: a, b and c cannot be told apart with 3 seeds (each p is at least 0.05 after";
        assert!(v.text.starts_with(start), "{}", v.text);
    }

    #[test]
    fn one_seed_is_a_guess_and_one_arm_no_choice() {
        let v = verdict(&[("a", &[4.5], 1e9), ("b", &[4.25], 1e9)]);
        assert_eq!((v.arm.as_str(), v.sure), ("b", false));
        assert!(v.text.contains("lower than a's by 0.2500, but one seed cannot say"), "{}", v.text);
        let v = verdict(&[("a", &[4.5, 4.6], 1e9)]);
        assert!(!v.sure && v.text.contains("only arm"), "{}", v.text);
        // Differences without any spread have no test.
        let v = verdict(&[("a", &[4.0, 4.5], 1e9), ("b", &[4.25, 4.75], 1e9)]);
        assert!(!v.sure && v.text.contains("no spread"), "{}", v.text);
    }

    #[test]
    fn the_terms_of_equal_seeds_decide_where_runs_are_missing() {
        // The mean of b is lower, by the one easy seed that a has not finished.
        let mut arms = vec![arm("a", &[4.0, 5.0, 5.1], 1e9), arm("b", &[4.2, 5.2, 5.3], 1e9)];
        arms[0].runs.remove(0);
        let mut s = summary(arms);
        s.state.seeds = vec![1, 2, 3];
        assert!(s.arms[1].ce().unwrap().mean < s.arms[0].ce().unwrap().mean);
        let v = Verdict::of(&s);
        assert_eq!(v.arm, "a", "{}", v.text);
    }
}
