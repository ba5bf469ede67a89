//! The page: figures, histogram, text.
//!
//! A token's figures show under a pointer, a finger or the arrow keys, at the page's lower edge.

mod histogram;
#[cfg(test)]
mod tests;

use super::{Figures, Inspection, Token};
use crate::report::chart::{decimals, fitting};
use crate::report::page::page as whole;
use crate::report::text::{count, percent};
use maud::{Markup, html};

/// Shades of the scale by rank of score, from the paper's colour on (ColorBrewer's Blues by day,
/// safe for every colour vision). The page's style knows them as s0 to s5.
const SHADES: usize = 6;

/// The whole page, self-contained.
pub fn page(found: &Inspection) -> String {
    let scale = Scale::of(found);
    let title = format!("{} scored by {}", found.model, found.score);
    let body = html! {
        h1 { (title) }
        (head(found))
        (levels(found))
        (histogram::chart(found))
        h2 { "Text" }
        (scale.legend(found))
        (text(found, &scale))
        (extremes(found))
    };
    whole(&title, None, &body)
}

fn head(found: &Inspection) -> Markup {
    let predicted = (found.tokens.len() - 1) as u64;
    html! {
        p {
            "Score, in nats: " (found.score.meaning().to_string().trim_end_matches('.')) "."
            @if let Some(teacher) = &found.teacher { " Teacher: " (teacher) "." }
            " " (count(predicted)) " predicted tokens, mean score " (fitting(found.score_mean))
            ", mean cross-entropy " (format!("{:.3}", found.ce)) "."
            @if found.tokens.len() < found.tokens_of_text {
                " The first " (count(found.tokens.len() as u64)) " of " (count(found.tokens_of_text as u64))
                " tokens of the text."
            }
        }
    }
}

fn levels(found: &Inspection) -> Markup {
    let n = (found.tokens.len() - 1) as f64;
    html! {
        div.wide { table {
            thead { tr {
                th { "alpha" }
                th.r { "VaR (threshold)" }
                th.r { "CVaR" }
                th.r { "kept" }
                th.r { "share" }
                th.r { "CE of kept" }
                th.r { "CE of dropped" }
            } }
            tbody { @for level in &found.levels { tr {
                th { (level.alpha) @if level.alpha == found.mark { " " small { "marked" } } }
                td.r { (fitting(level.var)) }
                td.r { (fitting(level.cvar)) }
                td.r { (count(level.kept as u64)) }
                td.r { (percent(level.kept as f64 / n)) }
                td.r { (format!("{:.3}", level.kept_ce)) }
                td.r { (level.dropped_ce.map_or_else(|| "–".into(), |ce| format!("{ce:.3}"))) }
            } } }
        } }
    }
}

fn figures(found: &Inspection) -> impl Iterator<Item = Figures> + '_ {
    found.tokens.iter().filter_map(|t| t.figures)
}

/// Shades by quantile of the scores, so that every shade is used however skewed they are.
struct Scale {
    bounds: Vec<f32>,
}

impl Scale {
    fn of(found: &Inspection) -> Self {
        let mut sorted: Vec<f32> = figures(found).map(|f| f.score).collect();
        sorted.sort_by(f32::total_cmp);
        let bounds = (1..SHADES).map(|i| sorted[i * sorted.len() / SHADES]).collect();
        Self { bounds }
    }

    fn shade(&self, score: f32) -> usize {
        self.bounds.partition_point(|bound| *bound <= score)
    }

    /// What each shade that is used stands for, with as many digits as tell them apart.
    fn names(&self) -> Vec<(usize, String)> {
        let bounds: Vec<f64> = self.bounds.iter().map(|b| f64::from(*b)).collect();
        let digits = decimals(&bounds, 2);
        let shown = |x: f64| format!("{x:.digits$}");
        let name = |i: usize| match (i.checked_sub(1).map(|j| bounds[j]), bounds.get(i)) {
            (None, Some(high)) => Some(format!("below {}", shown(*high))),
            // Between equal bounds lies nothing.
            (Some(low), Some(high)) if low == *high => None,
            (Some(low), Some(high)) => Some(format!("{} to {}", shown(low), shown(*high))),
            (low, None) => Some(format!("{} and above", shown(low.unwrap_or(0.0)))),
        };
        (0..SHADES).filter_map(|i| Some((i, name(i)?))).collect()
    }

    fn legend(&self, found: &Inspection) -> Markup {
        html! {
            p.scale {
                "score"
                @for (i, name) in self.names() { span class={ "s" (i) } { (name) } }
                span.kept { "underlined" } "kept at alpha " (found.mark)
            }
            p.note {
                "Point at a token, tap it, or go from token to token with the arrow keys: its figures stand at the lower edge. \
                 A character that is spread over tokens is whole at the first of them, and each of the others is a bar behind it."
            }
        }
    }
}

/// The text with its breaks made visible.
fn shown(text: &str) -> Markup {
    html! {
        @for c in text.split_inclusive(['\n', '\t']) {
            @let plain = c.trim_end_matches(['\n', '\t']);
            (plain)
            @match &c[plain.len()..] {
                "\n" => { i { "\u{21b5}" } "\n" }
                "\t" => { i { "\u{21e5}" } }
                _ => {}
            }
        }
    }
}

/// The figures of a token, in words.
fn said(token: &Token) -> String {
    let part = token.joined.as_ref().map_or_else(String::new, |j| {
        format!(" (part {} of {} of \"{}\": {})", j.at + 1, j.of, j.text, token.text)
    });
    let id = format!("id {}{part}", token.id);
    let Some(f) = token.figures else { return format!("{id}: the first token, not predicted") };
    let number = |x: f32| fitting(f64::from(x));
    let teacher = match (f.kl, f.teacher_nll) {
        (Some(kl), Some(nll)) => format!(", kl {}, teacher's nll {}", number(kl), number(nll)),
        _ => String::new(),
    };
    format!(
        "{id}, score {}, nll {}, entropy {}{teacher}, {}",
        number(f.score),
        number(f.nll),
        number(f.entropy),
        if f.kept { "kept" } else { "dropped" }
    )
}

fn text(found: &Inspection, scale: &Scale) -> Markup {
    let class = |token: &Token| {
        let mut class = String::from("t");
        if let Some(f) = token.figures {
            class += &format!(" s{}{}", scale.shade(f.score), if f.kept { " kept" } else { "" });
        }
        if token.joined.as_ref().is_some_and(|j| j.at > 0) {
            class += " part";
        }
        class
    };
    html! {
        // On one line: every space would be one of the text.
        div.text role="group" aria-label="the text, token by token" {
            @for (i, token) in found.tokens.iter().enumerate() {
                span class=(class(token)) title=(said(token)) tabindex=[(i == 0).then_some("0")]
                    data-of=[token.joined.as_ref().map(|j| &j.text)] { (shown(token.shown())) }
            }
        }
        div.detail role="status" aria-live="polite" hidden {}
    }
}

/// The ten tokens of largest and of smallest score, with what stands before them.
fn extremes(found: &Inspection) -> Markup {
    let mut order: Vec<usize> = (1..found.tokens.len()).collect();
    let score = |i: usize| found.tokens[i].figures.map_or(0.0, |f| f.score);
    order.sort_by(|a, b| score(*b).total_cmp(&score(*a)).then(a.cmp(b)));
    let ten = order.len().min(10);
    let lowest: Vec<usize> = order.iter().rev().take(ten).copied().collect();
    html! {
        h2 { "Extremes" }
        div.two {
            (list(found, "Highest scores", &order[..ten]))
            (list(found, "Lowest scores", &lowest))
        }
    }
}

fn list(found: &Inspection, title: &str, places: &[usize]) -> Markup {
    let score = |i: usize| found.tokens[i].figures.map_or(0.0, |f| f64::from(f.score));
    // A part of a character stands for the whole of it.
    let start = |i: usize| i - found.tokens[i].joined.as_ref().map_or(0, |j| j.at);
    let before = |i: usize| -> String {
        found.tokens[start(i.saturating_sub(5))..i].iter().map(Token::shown).collect()
    };
    html! {
        div {
            h3 { (title) }
            table { tbody { @for &i in places {
                @let token = &found.tokens[i];
                tr {
                    td.r { (fitting(score(i))) }
                    td.w {
                        (before(start(i)))
                        b { (token.joined.as_ref().map_or(&token.text, |j| &j.text)) }
                        @if let Some(j) = &token.joined { " " small { "part " (j.at + 1) " of " (j.of) } }
                    }
                }
            } } }
        }
    }
}
