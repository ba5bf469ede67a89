//! The histogram of the scores, with a line at every VaR and a triangle at every CVaR; drawn for a
//! wide screen and for a narrow one.

use super::super::histogram;
use super::{Inspection, figures};
use crate::report::chart::{decimals, fitting, ticks};
use maud::{Markup, html};

const BINS: usize = 40;

struct Layout {
    class: &'static str,
    width: f64,
    height: f64,
    left: f64,
    ticks: usize,
    /// Whether a level's figures stand beside it; a narrow screen has them in the table alone.
    worded: bool,
}

const LARGE: Layout =
    Layout { class: "large", width: 860.0, height: 200.0, left: 50.0, ticks: 8, worded: true };
const SMALL: Layout =
    Layout { class: "small", width: 366.0, height: 160.0, left: 40.0, ticks: 4, worded: false };

pub(super) fn chart(found: &Inspection) -> Markup {
    html! {
        h2 { "Scores" }
        figure {
            (draw(found, &LARGE))
            (draw(found, &SMALL))
            figcaption {
                "Bars: tokens. Dashed: value at risk, the threshold (mean over pools). Triangle: conditional value at risk, the \
                 mean score of what is kept."
            }
        }
    }
}

fn draw(found: &Inspection, l: &Layout) -> Markup {
    let scores: Vec<f32> = figures(found).map(|f| f.score).collect();
    let (low, width, counts) = histogram(&scores, BINS);
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    let top = 22.0 + 15.0 * found.levels.len() as f64;
    let (bottom, plot) = (top + l.height, l.width - l.left - 20.0);
    let high = low + width * BINS as f64;
    let x = |value: f64| l.left + (value - low) / (high - low) * plot;
    let (marks, _) = ticks(low, high, l.ticks);
    let digits = decimals(&marks, 0);
    let one = |v: f64| format!("{v:.1}");
    html! {
        svg class=(l.class) viewBox={ "0 0 " (l.width) " " (bottom + 42.0) } role="img"
            aria-label="Histogram of the scores with VaR and CVaR" {
            @for (i, count) in counts.iter().enumerate() {
                @let height = *count as f64 / most as f64 * l.height;
                rect.bar x=(one(x(low + i as f64 * width))) y=(one(bottom - height))
                    width=(one((plot / BINS as f64 - 1.0).max(1.0))) height=(one(height)) {
                    title { (count) " tokens from " (fitting(low + i as f64 * width)) " on" }
                }
            }
            path.axis d={ "M" (l.left) " " (bottom) "h" (plot) } {}
            @for value in marks {
                text.tick x=(one(x(value))) y=(bottom + 16.0) text-anchor="middle" { (format!("{value:.digits$}")) }
            }
            text.name x=(l.left + plot / 2.0) y=(bottom + 34.0) text-anchor="middle" { "score: " (found.score) ", in nats" }
            text.count x=(l.left - 4.0) y=(top + 10.0) text-anchor="end" { (most) }
            @for (i, level) in found.levels.iter().enumerate() {
                // Each level has a height of its own, so that close thresholds can be read.
                @let (y, var, cvar) = (18.0 + 15.0 * i as f64, x(level.var), x(level.cvar));
                @let at_end = cvar > l.width - if l.worded { 230.0 } else { 90.0 };
                @let beside = if at_end { var.min(cvar) - 8.0 } else { var.max(cvar) + 8.0 };
                path.var d={ "M" (one(var)) " " (y) "V" (bottom) } {}
                path.span d={ "M" (one(var)) " " (y) "H" (one(cvar)) } {}
                path.cvar d={ "M" (one(cvar - 5.0)) " " (y - 4.5) "l10 0 l-5 9 z" } {}
                text.label x=(one(beside)) y=(y + 4.0) text-anchor=(if at_end { "end" } else { "start" }) {
                    "alpha " (level.alpha)
                    @if l.worded { ": VaR " (fitting(level.var)) ", CVaR " (fitting(level.cvar)) }
                }
            }
        }
    }
}
