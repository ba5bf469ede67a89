//! Where arms differ: on other text, and by how frequent a token is.

use super::name;
use super::results::{signed, spread_cell};
use crate::compare::figures::{decile_chart, decile_differences, deciles, groups};
use crate::compare::stats::Spread;
use crate::compare::summary::{ArmResult, Summary};
use crate::report::chart::window;
use crate::report::text::{self, count};
use maud::{Markup, html};

pub(super) fn other_texts(s: &Summary, order: &[usize]) -> Markup {
    if s.state.also.is_empty() {
        return html! {};
    }
    let spread = |arm: &ArmResult, text: &str| arm.spread(|r| r.evaluation.other(text));
    let mean = |arm: &ArmResult, text: &str| spread(arm, text).map(|s| s.mean);
    let best =
        |text: &str| s.arms.iter().filter_map(|a| mean(a, text)).fold(f64::INFINITY, f64::min);
    let difference = |i: usize, text: &str| {
        let base = s.baseline.filter(|b| *b != i)?;
        other_difference(&s.arms[i], &s.arms[base], text)
    };
    html! {
        h2 { "Other text (out of domain)" }
        div.wide { table {
            thead { tr {
                th { "arm" }
                @for text in &s.state.also { th.r { (text) } th.r { "difference" } }
            } }
            tbody { @for &i in order { tr {
                (name(s, i))
                @for text in &s.state.also {
                    @let found = spread(&s.arms[i], text);
                    (spread_cell(found, found.is_some_and(|s| s.mean <= best(text))))
                    td.r { (difference(i, text).map_or_else(String::new, signed)) }
                }
            } } }
        } }
        p.note {
            "Cross-entropy in nats per token of text that is not in the data folder, in the data's tokenizer; mean ± sd and \
             range over the seeds. Difference: to " (s.state.baseline) ", mean over equal seeds, not tested."
        }
    }
}

/// Mean difference over the seeds that both have.
fn other_difference(arm: &ArmResult, base: &ArmResult, text: &str) -> Option<f64> {
    let pairs = arm.runs.iter().filter_map(|r| {
        let twin = base.runs.iter().find(|b| b.seed == r.seed)?;
        Some(r.evaluation.other(text)? - twin.evaluation.other(text)?)
    });
    Some(Spread::of(&pairs.collect::<Vec<_>>())?.mean)
}

pub(super) fn by_frequency(s: &Summary, order: &[usize]) -> Markup {
    let ranges = &s.arms[0].runs[0].evaluation.deciles;
    let base = s.baseline.map(|b| &s.arms[b]);
    let differences: Vec<Vec<f64>> =
        s.arms.iter().map(|a| base.map_or_else(Vec::new, |b| decile_differences(a, b))).collect();
    // One arm far from all others would leave these without a colour.
    let strongest = |all: &Vec<f64>| all.iter().map(|x| x.abs()).reduce(f64::max);
    let others = differences.iter().enumerate().filter(|(i, _)| s.baseline != Some(*i));
    let extents: Vec<(f64, f64)> =
        others.filter_map(|(_, all)| strongest(all)).map(|x| (x, x)).collect();
    let most = window(&extents).map_or(0.0, |(_, high)| high).max(1e-9);
    html! {
        h2 { "By token frequency" }
        div.wide { table.heat {
            thead {
                tr {
                    th { "decile" }
                    @for g in 1..=ranges.len() { th.r { (g) } }
                }
                tr {
                    th { small { "occurrences in training" } }
                    @for d in ranges { th.r { small { (count(d.least)) "–" br; (count(d.most)) } } }
                }
            }
            tbody { @for &i in order { tr {
                (name(s, i))
                @if base.is_some() && s.baseline != Some(i) {
                    @for x in &differences[i] { (heat(*x, most)) }
                } @else {
                    @for x in deciles(&s.arms[i]) { td.r { (format!("{x:.3}")) } }
                }
            } } }
        } }
        @for (g, group) in groups(s).iter().enumerate() {
            @if let Some(chart) = decile_chart(s, group) { (chart.figure(&format!("d{g}"))) }
        }
        p.note {
            "Validation tokens sorted by how often their type occurs in the training tokens, cut into ten groups of equal size. "
            @if base.is_some() {
                "The row of " (s.state.baseline) " is its cross-entropy; the others are differences to it, blue is lower \
                 (better), orange higher."
            } @else { "Cross-entropy in nats per token." }
            " Means over the seeds."
        }
    }
}

/// The paper's colour at 0; towards blue below, towards orange above, full at `most`.
fn heat(x: f64, most: f64) -> Markup {
    let strength = (x.abs() / most).min(1.0);
    html! {
        td class={ "r " (if x < 0.0 { "low" } else { "high" }) } style=(format!("--a:{strength:.2}")) {
            (text::signed(x, 3).replace('-', "−"))
        }
    }
}
