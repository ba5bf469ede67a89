//! The page of runs: a table of where they are, and their curves on three axes.

use super::Live;
use crate::compare::figures::{Axis, SECONDS, STEPS, TOKENS, focus};
use crate::compare::runs::Point;
use crate::compare::verdict::plural;
use crate::report::chart::{Chart, Line, key};
use crate::report::page::page as whole;
use crate::report::text::{count, percent, seconds};
use maud::{Markup, html};

/// Points of a training curve; more are drawn as means.
const MOST_POINTS: usize = 300;
/// Share of x whose losses may lie above what is shown.
const START: f64 = 0.1;

/// The whole page. With `refresh` it loads itself again after that many seconds.
pub fn page(runs: &[Live], refresh: Option<u32>) -> String {
    let title = match runs {
        [one] => format!("Run {}", one.place.name),
        _ => plural(runs.len(), "run"),
    };
    let axes = [("steps", &STEPS), ("tokens", &TOKENS), ("time", &SECONDS)];
    let body = html! {
        h1 { (title) }
        p class={ "first" @if runs.iter().any(|r| !r.finished) { " open" } } { (first(runs)) }
        @if let Some(every) = refresh {
            p.sub { "This page is written while training goes on, and loads itself again every " (every) " seconds." }
        }
        (table(runs))
        div.choice {
            @for (i, (name, _)) in axes.iter().enumerate() {
                input type="radio" name="axis" id={ "over-" (name) } checked[i == 0];
                label for={ "over-" (name) } { "over " (name) }
            }
            @for (name, axis) in axes {
                section {
                    h2 { "Validation" }
                    (validation(runs, axis).figure(&format!("v-{name}")))
                    h2 { "Training" }
                    (training(runs, axis).figure(&format!("t-{name}")))
                }
            }
        }
        p.note {
            "Training: mean cross-entropy of all tokens of a logged step (full_loss). "
            @if runs.iter().any(|r| r.kept_only) {
                "A run whose early exit leaves tokens unscored has only that of its kept tokens, which cannot be compared with \
                 the others. "
            }
            @if runs.iter().any(|r| r.training.len() > MOST_POINTS) {
                "Of many steps the means of neighbours are drawn. "
            }
            "The first losses may lie above what is shown; an arrow at the edge is a line that ends outside."
        }
    };
    whole(&title, refresh, &body)
}

/// How far the runs are, and how good.
fn first(runs: &[Live]) -> String {
    let finished = runs.iter().filter(|r| r.finished).count();
    let how_far = match runs {
        [one] => match (one.finished, one.left()) {
            (true, _) => "Finished".to_string(),
            (false, Some(left)) => format!("{}, about {} left", progress(one), seconds(left)),
            (false, None) => progress(one),
        },
        _ if finished == runs.len() => format!("{}, all finished", plural(finished, "run")),
        _ => format!("{finished} of {} finished", plural(runs.len(), "run")),
    };
    let best = (runs.iter().filter_map(|r| Some((r, r.best()?))))
        .min_by(|a, b| a.1.loss.total_cmp(&b.1.loss));
    match best {
        Some((run, point)) => {
            let whose =
                if runs.len() > 1 { format!("{}, ", run.place.name) } else { String::new() };
            let so_far = if finished < runs.len() { " so far" } else { "" };
            let caveat = match differently_validated(runs).as_slice() {
                [] => String::new(),
                [one] => {
                    format!(" But {one} differs between the runs, so their losses do not compare.")
                }
                keys => format!(
                    " But {} differ between the runs, so their losses do not compare.",
                    keys.join(", ")
                ),
            };
            format!(
                "{how_far}. Lowest validation loss{so_far}: {whose}{:.4} at step {}.{caveat}",
                point.loss,
                count(point.step)
            )
        }
        None => format!("{how_far}. No validation yet."),
    }
}

/// Keys in which validations of different runs differ, as far as their plans say: other text, or
/// less context for each token of it.
fn differently_validated(runs: &[Live]) -> Vec<&'static str> {
    let mut validated =
        runs.iter().filter(|r| r.best().is_some()).filter_map(|r| r.validated_on.as_ref());
    let Some(first) = validated.next() else { return Vec::new() };
    let others: Vec<_> = validated.collect();
    let differs = |i: &usize| others.iter().any(|other| other[*i] != first[*i]);
    (0..first.len()).filter(differs).map(|i| first[i].0).collect()
}

fn progress(run: &Live) -> String {
    let state = run.state();
    match (run.last(), state.steps) {
        _ if run.finished => format!("finished, {}", plural(state.step as usize, "step")),
        (None, _) => "nothing yet".into(),
        (Some(_), Some(steps)) if steps > 0 => {
            let share = percent(state.step as f64 / steps as f64);
            let stands = if run.running { "" } else { ", not running" };
            format!("step {} of {} ({share}){stands}", count(state.step), count(steps))
        }
        _ => format!("step {}", count(state.step)),
    }
}

fn table(runs: &[Live]) -> Markup {
    let loss = |x: Option<f64>| x.map_or_else(|| "–".into(), |x| format!("{x:.4}"));
    html! {
        div.wide { table {
            thead { tr {
                th { "run" }
                th.r { "validation loss" br; small { "last" } }
                th.r { "validation loss" br; small { "lowest" } }
                th.r { "training loss" br; small { "last" } }
                th { "state" }
                th.r { "tokens" }
                th.r { "time" }
                th.r { "left" }
            } }
            tbody { @for run in runs {
                @let state = run.state();
                tr {
                    th { (key(run.place.style)) (run.place.name) }
                    td.r { (loss(state.val_loss)) }
                    td.r { (loss(state.best_val_loss)) }
                    td.r { (loss(state.train_loss)) @if run.kept_only { " " small { "kept tokens" } } }
                    td.whole { (progress(run)) }
                    td.r { (count(state.tokens)) }
                    td.r { (seconds(state.seconds)) }
                    td.r { (run.left().map_or_else(|| "–".into(), seconds)) }
                }
            } }
        } }
    }
}

fn validation(runs: &[Live], axis: &Axis) -> Chart {
    chart(runs, axis, "Validation", false, |run| run.validation.clone())
}

fn training(runs: &[Live], axis: &Axis) -> Chart {
    chart(runs, axis, "Training", true, |run| thinned(&run.training))
}

fn chart(
    runs: &[Live],
    axis: &Axis,
    what: &str,
    dense: bool,
    points: impl Fn(&Live) -> Vec<Point>,
) -> Chart {
    let most = (runs.iter().flat_map(|r| r.training.iter().chain(&r.validation)))
        .map(axis.of)
        .fold(0.0, f64::max);
    let (x, size) = axis.unit(most);
    let lines: Vec<Line> = (runs.iter())
        .map(|run| Line {
            name: run.place.name.clone(),
            kind: run.place.arm.clone(),
            style: run.place.style,
            points: points(run).iter().map(|p| ((axis.of)(p) / size, p.loss)).collect(),
            band: Vec::new(),
        })
        .collect();
    Chart {
        title: format!("{what} cross-entropy against {}", axis.name),
        range: focus(&lines, START),
        x,
        y: format!("{} CE (nats per token)", what.to_lowercase()),
        lines,
        places: Vec::new(),
        zero: false,
        dense,
    }
}

/// At most [`MOST_POINTS`] means of as many neighbours each.
pub(super) fn thinned(points: &[Point]) -> Vec<Point> {
    let each = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |part: &[Point]| {
        let of = |f: fn(&Point) -> f64| part.iter().map(f).sum::<f64>() / part.len() as f64;
        Point {
            step: part[part.len() / 2].step,
            tokens: of(|p| p.tokens),
            flops: of(|p| p.flops),
            seconds: of(|p| p.seconds),
            loss: of(|p| p.loss),
        }
    };
    points.chunks(each).map(mean).collect()
}
