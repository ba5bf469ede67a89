//! The tables of losses and of their differences.

use super::name;
use crate::compare::runs::Metrics;
use crate::compare::stats::{Difference, Spread};
use crate::compare::summary::{ArmResult, Summary};
use crate::compare::verdict::{LEVEL, plural, why_untested};
use crate::report::chart::{decimals, fitting, interval, strip, window};
use crate::report::text::{self, count, flops, seconds};
use maud::{Markup, html};

pub(super) fn spread_cell(spread: Option<Spread>, best: bool) -> Markup {
    let Some(Spread { mean, sd, min, max, .. }) = spread else {
        return html! { td.r.none { "–" } };
    };
    let mean = format!("{mean:.4}");
    html! {
        td.r {
            @if best { b { (mean) } } @else { (mean) }
            @if let Some(sd) = sd {
                " ± " (format!("{sd:.4}")) br; small { (format!("{min:.4} to {max:.4}")) }
            }
        }
    }
}

pub(super) fn main_table(s: &Summary, order: &[usize]) -> Markup {
    let extents: Vec<(f64, f64)> =
        s.arms.iter().filter_map(|a| a.ce()).map(|c| (c.min, c.max)).collect();
    let scale = window(&extents).unwrap_or((0.0, 1.0));
    let digits = decimals(&[scale.0, scale.1], 3);
    let mark = s.baseline.and_then(|b| s.arms[b].ce()).map(|c| c.mean);
    let best = s.arms.iter().filter_map(|a| a.ce()).map(|c| c.mean).fold(f64::INFINITY, f64::min);
    let base = &s.state.baseline;
    html! {
        h2 { "Results, the lowest loss first" }
        div.wide { table {
            thead { tr {
                th { "arm" }
                th.r { "validation CE" br; small { "mean ± sd, range" } }
                th { "every seed" br; small { (format!("{:.digits$} to {:.digits$}", scale.0, scale.1)) } }
                th.r { "seeds" }
                th.r { "steps" }
                th.r { "tokens" }
                th.r { "FLOPs" }
                th.r { "time" }
                th.r { "FLOPs to" br; (base) "'s CE" }
                th.r { "time to" br; (base) "'s CE" }
            } }
            tbody { @for &i in order { (main_row(s, i, scale, mark, best)) } }
        } }
        p.note {
            "CE is mean cross-entropy in nats over " @if s.state.eval_tokens > 0 { "the first " } @else { "all " } (count(s.arms[0].runs[0].evaluation.tokens))
            " validation predictions, whatever was selected in training. Every seed: one tick per run, the dot is the mean, the \
             dashed line " (base) "'s mean, an arrow what lies outside the scale. FLOPs are those executed; time is training \
             alone, without validation. The last two columns: where the arm's mean validation curve first comes down to the last \
             point of " (base) "'s, on a straight line between validations."
        }
    }
}

fn main_row(s: &Summary, i: usize, scale: (f64, f64), mark: Option<f64>, best: f64) -> Markup {
    let arm = &s.arms[i];
    let ce = arm.ce();
    let values: Vec<(String, f64)> =
        arm.runs.iter().map(|r| (format!("seed {}", r.seed), r.evaluation.ce)).collect();
    let total = |f: fn(&Metrics) -> f64| arm.spread(|r| Some(f(&r.metrics)));
    let mean = |spread: Option<Spread>| spread.map_or(0.0, |s| s.mean);
    let time = total(|m| m.seconds);
    html! {
        tr {
            (name(s, i))
            (spread_cell(ce, ce.is_some_and(|c| c.mean <= best)))
            td { (strip(s.style(i), &values, mean(ce), scale, mark)) }
            td.r { (arm.runs.len()) }
            td.r { (count(arm.runs[0].steps)) }
            td.r { (count(mean(total(|m| m.tokens)) as u64)) }
            td.r { (flops(mean(total(|m| m.flops)) as u128)) }
            td.r {
                (seconds(mean(time)))
                @if let Some(t) = time.filter(|t| t.n > 1) {
                    br; small { (seconds(t.min)) " to " (seconds(t.max)) }
                }
            }
            @match arm.reaches {
                Some(p) => { td.r { (flops(p.flops as u128)) } td.r { (seconds(p.seconds)) } }
                None => { td.r.none { "not reached" } td.r.none { "not reached" } }
            }
        }
    }
}

/// The part of the axis of differences that is shown, the same on both sides of 0.
pub(super) fn reach(all: &[Difference]) -> f64 {
    let extent = |d: &Difference| d.test.map_or((d.mean, d.mean), |t| (t.low, t.high));
    let (low, high) = window(&all.iter().map(extent).collect::<Vec<_>>()).unwrap_or((0.0, 0.0));
    low.abs().max(high.abs()).max(1e-4) * 1.05
}

pub(super) fn differences(s: &Summary, order: &[usize]) -> Markup {
    let of = |a: &ArmResult| [a.to_baseline, a.to_control];
    let all: Vec<Difference> = s.arms.iter().flat_map(of).flatten().collect();
    if all.is_empty() {
        return html! {};
    }
    let reach = reach(&all);
    let tests = match s.tests {
        0 => format!("No test: {}.", why_untested(s)),
        n => format!(
            "Paired two-sided t-tests on the validation CE of all evaluated tokens, of runs with the same seed, {}. p (Holm) corrects for \
             their number; bold is below 0.05. A dash: fewer than two seeds, or differences without any spread. With few \
             seeds the intervals are wide, and a difference that is not shown is not shown to be absent.",
            plural(n, "test")
        ),
    };
    html! {
        h2 { "Differences over equal seeds" }
        (section(s, order, false, reach))
        @if s.arms.iter().any(|a| a.to_control.is_some()) { (section(s, order, true, reach)) }
        p.note { "The arm's CE minus that of the other: negative is better. An arrow at the edge is an interval that goes on. " (tests) }
    }
}

fn section(s: &Summary, order: &[usize], control: bool, reach: f64) -> Markup {
    let of = |i: usize| if control { s.arms[i].to_control } else { s.arms[i].to_baseline };
    html! {
        div.wide { table {
            thead { tr {
                th { @if control { "to random at equal keep" } @else { "to " (s.state.baseline) } }
                @if control { th { "control" } }
                th.r { "difference of CE" }
                th { "−" (fitting(reach)) " to +" (fitting(reach)) }
                th.r { "95 % interval" }
                th.r { "seeds" }
                th.r { "p" }
                th.r { "p (Holm)" }
            } }
            tbody { @for (i, d) in order.iter().filter_map(|&i| Some((i, of(i)?))) {
                tr {
                    (name(s, i))
                    @if control {
                        td { @if let Some(c) = s.arms[i].control { (s.arms[c].arm.label) } }
                    }
                    td.r { (signed(d.mean)) }
                    td { (interval(s.style(i), d.mean, d.test.map(|t| (t.low, t.high)), (-reach, reach))) }
                    @match d.test {
                        Some(t) => {
                            td.r { (signed(t.low)) " to " (signed(t.high)) }
                            td.r { (d.n) }
                            td.r { (probability(t.p)) }
                            td.r {
                                @if t.p_holm < LEVEL { b { (probability(t.p_holm)) } }
                                @else { (probability(t.p_holm)) }
                            }
                        }
                        None => { td.r { "–" } td.r { (d.n) } td.r { "–" } td.r { "–" } }
                    }
                }
            } }
        } }
    }
}

pub(super) fn signed(x: f64) -> String {
    text::signed(x, 4).replace('-', "−")
}

fn probability(p: f64) -> String {
    if p < 0.001 { "< 0.001".into() } else { format!("{p:.3}") }
}
