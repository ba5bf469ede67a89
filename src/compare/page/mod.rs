//! `report.html`: one page that needs nothing else, for screens of any width and for paper. Arms
//! are sorted by result, and each has its colour in every part.

mod results;
#[cfg(test)]
mod tests;
mod texts;

use super::REPORT_HTML;
use super::budget::Budget;
use super::figures::{curves, groups};
use super::stats::Difference;
use super::summary::{ArmResult, CURVES_CSV, REPORT_CSV, Summary, flat};
use super::verdict::{LEVEL, Verdict, plural, why_untested};
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::report::chart::{Chart, Line, key};
use crate::report::page::page as whole;
use crate::report::text::{count, perplexity};
use maud::{Markup, html};
use std::collections::BTreeMap;

/// The curves of a comparison as files of their own, by their x axis in the order of
/// [`curves`]; with more arms than a chart holds, the first of its charts.
pub const CURVES_SVG: [&str; 3] = ["loss-tokens.svg", "loss-flops.svg", "loss-seconds.svg"];

/// Writes the page, and the curves as files.
pub fn write(summary: &Summary) -> Result<()> {
    let put = |name: &str, text: String| {
        let path = summary.out.join(name);
        write_atomic(&path, |w| {
            w.write_all(text.as_bytes()).map_err(|e| Error::io("write", &path, e))
        })
    };
    let first = groups(summary).into_iter().next().unwrap_or_default();
    for (name, chart) in CURVES_SVG.iter().zip(curves(summary, &first)) {
        put(name, chart.file())?;
    }
    put(REPORT_HTML, page(summary))
}

/// The whole page.
pub fn page(s: &Summary) -> String {
    let order = s.ranking();
    let body = html! {
        (head(s))
        (findings(s))
        (results::main_table(s, &order))
        (results::differences(s, &order))
        (charts(s))
        (arms_table(s, &order))
        (texts::other_texts(s, &order))
        (texts::by_frequency(s, &order))
        (how(s))
    };
    whole(&title(s), None, &body)
}

fn title(s: &Summary) -> String {
    let name =
        s.out.file_name().map_or_else(|| "comparison".into(), |n| n.to_string_lossy().into_owned());
    format!("Comparison {name}")
}

fn head(s: &Summary) -> Markup {
    let d = &s.state.data;
    let budget = match s.state.budget {
        Budget::Tokens => "steps as run files and settings say",
        Budget::Flops => "steps set to the baseline's FLOPs",
        Budget::Seconds => "steps set to the baseline's seconds",
    };
    let seeds: Vec<String> = s.state.seeds.iter().map(ToString::to_string).collect();
    let missing: Vec<String> =
        s.missing.iter().map(|(label, seed)| format!("{label} seed {seed}")).collect();
    let verdict = Verdict::of(s);
    html! {
        h1 { (title(s)) }
        p class={ "first" @if !verdict.sure { " open" } } { (verdict.text) }
        p.sub {
            (plural(s.arms.len(), "arm")) ", " (plural(seeds.len(), "seed")) " (" (seeds.join(", ")) "); "
            (budget) ". Data: " (d.dir) " (" (count(d.train_tokens)) " training and " (count(d.valid_tokens))
            @if s.state.eval_tokens > 0 { " evaluated" } " validation tokens, vocabulary of " (count(u64::from(d.vocabulary))) "). Baseline: "
            b { (s.state.baseline) } "."
        }
        @if !missing.is_empty() {
            p.warn {
                @if missing.len() == 1 { "One run is" } @else { (missing.len()) " runs are" }
                " not finished and not on this page: " (missing.join(", ")) "."
            }
        }
    }
}

/// What can be said, in sentences.
fn findings(s: &Summary) -> Markup {
    let best = (s.arms.iter().filter_map(|a| Some((a, a.ce()?))))
        .min_by(|a, b| a.1.mean.total_cmp(&b.1.mean));
    html! {
        ul.findings {
            @if let Some((arm, ce)) = best {
                li {
                    "Lowest mean validation cross-entropy: " b { (arm.arm.label) }
                    ", " (format!("{:.4}", ce.mean)) " nats per token (perplexity " (perplexity(ce.mean)) ")."
                }
            }
            @if s.tests == 0 {
                li { "No difference could be tested: " (why_untested(s)) "." }
            } @else {
                (sentence(s, &format!("{} (the baseline)", s.state.baseline), |a| a.to_baseline))
                @if s.arms.iter().any(|a| a.to_control.is_some()) {
                    (sentence(s, "its random control at equal keep", |a| a.to_control))
                }
            }
        }
    }
}

fn sentence(s: &Summary, other: &str, of: impl Fn(&ArmResult) -> Option<Difference>) -> Markup {
    let (mut lower, mut higher, mut open) = (Vec::new(), Vec::new(), Vec::new());
    for arm in s.ranking().into_iter().map(|i| &s.arms[i]) {
        let Some(difference) = of(arm) else { continue };
        let list = match difference.test {
            Some(t) if t.p_holm < LEVEL && difference.mean < 0.0 => &mut lower,
            Some(t) if t.p_holm < LEVEL => &mut higher,
            _ => &mut open,
        };
        list.push(arm.arm.label.as_str());
    }
    let parts: Vec<String> = [("lower", lower), ("higher", higher), ("no difference shown", open)]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(what, list)| format!("{what}: {}", list.join(", ")))
        .collect();
    html! { li { "Against " (other) ", at 5 % after correction: " (parts.join("; ")) "." } }
}

/// A row's arm with its colour, marked if it is the baseline.
fn name(s: &Summary, i: usize) -> Markup {
    html! {
        th {
            (key(s.style(i))) (s.arms[i].arm.label)
            @if s.baseline == Some(i) { " " small { "baseline" } }
        }
    }
}

fn arms_table(s: &Summary, order: &[usize]) -> Markup {
    // Of the arms that have a key at all: one that selects nothing has no score.
    let differs = |k: &String| k == "seed" || s.differing.contains(&k.as_str());
    let mut common: BTreeMap<String, String> = BTreeMap::new();
    for arm in &s.arms {
        common.extend(flat(&arm.arm).into_iter().filter(|(k, _)| !differs(k)));
    }
    html! {
        h2 { "What was compared" }
        @if s.differing.is_empty() { p { "The arms do not differ in any key." } }
        div.wide { table {
            thead { tr {
                th { "arm" }
                @for key in &s.differing {
                    // A long name may break after its section.
                    th { @for (i, part) in key.split('.').enumerate() { @if i > 0 { "." wbr; } (part) } }
                }
                th.r { "student" }
            } }
            tbody { @for &i in order { tr {
                (name(s, i))
                @for value in s.arms[i].values(&s.differing) {
                    td { @if value.is_empty() { span.none { "–" } } @else { (value) } }
                }
                td.r { (millions(s.arms[i].state.parameters)) }
            } } }
        } }
        details {
            summary { "Settings that the arms share, as far as they have them" }
            p.keys { @for (k, v) in &common { span { (k) " = " (v) } " " } }
        }
    }
}

/// Parameters of a model.
fn millions(n: u64) -> String {
    if n >= 1_000_000 { format!("{:.2}M", n as f64 / 1e6) } else { format!("{}k", n / 1000) }
}

fn charts(s: &Summary) -> Markup {
    let groups = groups(s);
    let drawn: Vec<Vec<Chart>> = groups.iter().map(|group| curves(s, group)).collect();
    // What is said of the charts is what they show.
    let leaves = |chart: &Chart, end: bool| {
        let outside = |p: &(f64, f64)| p.1 > chart.range.1 || end && p.1 < chart.range.0;
        let point =
            |line: &Line| if end { line.points.last() } else { line.points.first() }.copied();
        chart.lines.iter().filter_map(point).any(|p| outside(&p))
    };
    let any = |end: bool| drawn.iter().flatten().any(|chart| leaves(chart, end));
    html! {
        h2 { "Validation during training" }
        @for (g, group) in groups.iter().enumerate() {
            @if groups.len() > 1 { h3 { (group_title(s, g, groups.len(), group)) } }
            @for (i, chart) in drawn[g].iter().enumerate() { (chart.figure(&format!("c{g}-{i}"))) }
        }
        p.note {
            "Lines are means over the seeds, bands go from the lowest to the highest."
            @if any(false) { " The fall of the first losses is cut off so that differences show." }
            @if any(true) { " An arrow at the edge is a line that ends outside." }
            @if let Some(part) = s.arms.iter().find_map(|a| validated_part(&a.arm.plan, s.state.data.valid_tokens)) {
                " Validations during training read " (part) ", not all."
            }
        }
    }
}

/// What validations during training read of `tokens`, where that is not all.
fn validated_part(plan: &Plan, tokens: u64) -> Option<String> {
    let (eval, context) = (&plan.eval, plan.data.context as u64);
    let first = if eval.tokens == 0 { tokens } else { tokens.min(eval.tokens) };
    // The first row is a context, later ones add a stride each.
    let predicted = context + (eval.rows as u64).saturating_sub(1) * eval.stride as u64;
    if eval.rows > 0 && predicted + 1 < first {
        return Some(format!("the first {} sequences (eval.rows)", count(eval.rows as u64)));
    }
    (first < tokens).then(|| format!("the first {} tokens (eval.tokens)", count(first)))
}

fn group_title(s: &Summary, g: usize, of: usize, group: &[usize]) -> String {
    let others = group.iter().filter(|i| Some(**i) != s.baseline).count();
    let beside = match s.baseline {
        Some(_) => format!(", beside {}", s.state.baseline),
        None => String::new(),
    };
    format!("Part {} of {of}: {}{beside}", g + 1, plural(others, "arm"))
}

fn how(s: &Summary) -> Markup {
    let base = &s.state.baseline;
    let kept =
        "warm-up, burn-in, ramp and the steps between validations keep their share of the run.";
    let budget = match s.state.budget {
        Budget::Tokens => String::from("Every arm trained for the steps of its run file."),
        Budget::Flops => format!(
            "Steps were set so that the forecast FLOPs of every arm are nearest to those of {base}; {kept} Where alpha moves \
             by itself, the forecast counts it at its target."
        ),
        Budget::Seconds => format!(
            "Steps were set so that every arm takes the seconds that {base} took with the first seed, by a few measured steps \
             of each; {kept}"
        ),
    };
    html! {
        h2 { "How" }
        p.note {
            (budget) " Runs with the same seed share first weights (where the student is the same) and order of the data. \
             Random control: the arm whose select.score (and select.probe_score, with an early exit) is \"random\", all else \
             equal. sd is the standard deviation over seeds (n − 1). The first line tests the arm of lowest mean against every \
             other one, and corrects p for all pairs of arms, since any of them could have come first; the table of differences \
             corrects for the tests in it. One row per run is in " (REPORT_CSV) ", every validation in " (CURVES_CSV) "."
        }
    }
}
