//! The charts of a comparison: cross-entropy against tokens, FLOPs and seconds, and by token
//! frequency.

use super::runs::Point;
use super::summary::{ArmResult, Summary};
use crate::report::chart::{Chart, Line, MOST_LINES, window};

/// Share of the longest run after which the losses decide what part of the axis is shown.
const START: f64 = 0.45;

/// Arms that share a chart: all of them, or the baseline with as many others as there are colours.
pub fn groups(summary: &Summary) -> Vec<Vec<usize>> {
    let others = MOST_LINES - 1;
    let charts = summary.state.arms.len().div_ceil(others);
    let group = |g: usize| -> Vec<usize> {
        let named = (0..summary.arms.len()).filter(|i| Some(*i) != summary.baseline);
        summary
            .baseline
            .into_iter()
            .chain(named.filter(|i| (summary.style(*i) - 1) / others == g))
            .collect()
    };
    let mut found: Vec<Vec<usize>> = (0..charts).map(group).collect();
    // A chart of the baseline alone is drawn only where there is no other.
    let alone = |g: &Vec<usize>| g.iter().all(|i| Some(*i) == summary.baseline);
    if !found.iter().all(alone) {
        found.retain(|g| !alone(g));
    }
    found.truncate(if found.iter().all(alone) { 1 } else { charts });
    found
}

/// A quantity of the x axis.
pub(super) struct Axis {
    /// What it is.
    pub(super) name: &'static str,
    /// Its value at a point.
    pub(super) of: fn(&Point) -> f64,
    /// Name of a unit and how much of the quantity it is, ascending.
    units: &'static [(&'static str, f64)],
}

pub(super) const TOKENS: Axis = Axis {
    name: "training tokens",
    of: |p| p.tokens,
    units: &[
        ("", 1.0),
        ("thousands", 1e3),
        ("millions", 1e6),
        ("billions", 1e9),
        ("trillions", 1e12),
    ],
};
const FLOPS: Axis = Axis {
    name: "executed operations",
    of: |p| p.flops,
    units: &[
        ("FLOP", 1.0),
        ("MFLOP", 1e6),
        ("GFLOP", 1e9),
        ("TFLOP", 1e12),
        ("PFLOP", 1e15),
        ("EFLOP", 1e18),
        ("ZFLOP", 1e21),
    ],
};
pub(super) const STEPS: Axis = Axis {
    name: "optimizer steps",
    of: |p| p.step as f64,
    units: &[("", 1.0), ("thousands", 1e3), ("millions", 1e6)],
};
pub(super) const SECONDS: Axis = Axis {
    name: "training time",
    of: |p| p.seconds,
    units: &[("seconds", 1.0), ("minutes", 60.0), ("hours", 3600.0), ("days", 86400.0)],
};

impl Axis {
    /// The largest unit of which the axis has more than two; and the axis' name with it.
    pub(super) fn unit(&self, most: f64) -> (String, f64) {
        let (unit, size) =
            self.units.iter().rev().find(|(_, size)| most > 2.0 * size).unwrap_or(&self.units[0]);
        let name =
            if unit.is_empty() { self.name.to_string() } else { format!("{} ({unit})", self.name) };
        (name, *size)
    }
}

/// Validation cross-entropy of a group against tokens, FLOPs and seconds, in this order.
pub fn curves(summary: &Summary, group: &[usize]) -> Vec<Chart> {
    let arms: Vec<&ArmResult> = group.iter().map(|&i| &summary.arms[i]).collect();
    [TOKENS, FLOPS, SECONDS]
        .iter()
        .map(|axis| {
            let most = arms.iter().flat_map(|a| &a.curve).map(axis.of).fold(0.0, f64::max);
            let (x, size) = axis.unit(most);
            let lines: Vec<Line> = (group.iter().zip(&arms))
                .map(|(&i, arm)| Line {
                    name: arm.arm.label.clone(),
                    kind: arm.arm.label.clone(),
                    style: summary.style(i),
                    points: arm.curve.iter().map(|p| ((axis.of)(p) / size, p.loss)).collect(),
                    band: arm.band.clone(),
                })
                .collect();
            Chart {
                title: format!("Validation cross-entropy against {}", axis.name),
                range: focus(&lines, START),
                x,
                y: "validation CE (nats per token)".into(),
                lines,
                places: Vec::new(),
                zero: false,
                dense: false,
            }
        })
        .collect()
}

/// The part of y that is filled from the share `start` of x on: the fall from the first losses would
/// hide every difference, and so would a line far from all others.
pub(super) fn focus(lines: &[Line], start: f64) -> (f64, f64) {
    let most = lines.iter().flat_map(|l| &l.points).map(|p| p.0).fold(0.0, f64::max);
    let extents = |line: &Line| -> Vec<(f64, f64)> {
        match line.band.len() == line.points.len() {
            true => line.band.clone(),
            false => line.points.iter().map(|p| (p.1, p.1)).collect(),
        }
    };
    let ends = |line: &&Line| extents(line).last().copied();
    // Which lines are far off, their ends say: the same ones on every axis.
    let shown = window(&lines.iter().filter_map(|l| ends(&l)).collect::<Vec<_>>());
    let near = |line: &&Line| {
        let end = ends(line);
        end.zip(shown).is_some_and(|(end, shown)| end.0 <= shown.1 && end.1 >= shown.0)
    };
    let late = |line: &Line| {
        // Two at least: one point is no line.
        let last_two = line.points.len().saturating_sub(2);
        let from = line.points.iter().position(|p| p.0 >= start * most);
        let from = from.map_or(last_two, |from| from.min(last_two));
        extents(line).into_iter().skip(from).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    };
    let parts: Vec<(f64, f64)> = lines.iter().filter(near).filter_map(late).collect();
    let (low, high) = window(&parts).unwrap_or((0.0, 1.0));
    pad(low, high)
}

/// Some room above and below; never an empty range.
pub(super) fn pad(low: f64, high: f64) -> (f64, f64) {
    if !low.is_finite() || !high.is_finite() {
        return (0.0, 1.0);
    }
    let room = (0.05 * (high - low)).max(1e-3);
    (low - room, high + room)
}

/// Mean over the seeds of every decile's cross-entropy.
pub fn deciles(arm: &ArmResult) -> Vec<f64> {
    let n = arm.runs.iter().map(|r| r.evaluation.deciles.len()).min().unwrap_or(0);
    (0..n)
        .filter_map(|g| arm.spread(|r| Some(r.evaluation.deciles[g].ce)).map(|s| s.mean))
        .collect()
}

/// Deciles of `arm` less those of the baseline, over the seeds that both have.
pub fn decile_differences(arm: &ArmResult, base: &ArmResult) -> Vec<f64> {
    let pairs: Vec<_> = (arm.runs.iter())
        .filter_map(|r| Some((r, base.runs.iter().find(|b| b.seed == r.seed)?)))
        .map(|(r, b)| (&r.evaluation.deciles, &b.evaluation.deciles))
        .collect();
    let groups = pairs.iter().map(|(a, b)| a.len().min(b.len())).min().unwrap_or(0);
    (0..groups)
        .map(|g| pairs.iter().map(|(a, b)| a[g].ce - b[g].ce).sum::<f64>() / pairs.len() as f64)
        .collect()
}

/// Differences to the baseline by token frequency; None without a baseline or anything beside it.
pub fn decile_chart(summary: &Summary, group: &[usize]) -> Option<Chart> {
    let base = &summary.arms[summary.baseline?];
    let lines: Vec<Line> = (group.iter())
        .filter(|i| Some(**i) != summary.baseline)
        .map(|&i| Line {
            name: summary.arms[i].arm.label.clone(),
            kind: summary.arms[i].arm.label.clone(),
            style: summary.style(i),
            points: (1..).map(f64::from).zip(decile_differences(&summary.arms[i], base)).collect(),
            band: Vec::new(),
        })
        .filter(|line| !line.points.is_empty())
        .collect();
    let extent =
        |l: &Line| l.points.iter().map(|p| (p.1, p.1)).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
    let (low, high) = window(&lines.iter().filter_map(extent).collect::<Vec<_>>())?;
    let range = pad(low.min(0.0), high.max(0.0));
    let places = (1..=lines.first()?.points.len()).map(|g| g.to_string()).collect();
    Some(Chart {
        title: format!("Difference of cross-entropy to {} by token frequency", base.arm.label),
        x: "decile of validation tokens, from rare to frequent in the training tokens".into(),
        y: "difference of CE (nats)".into(),
        lines,
        range,
        places,
        zero: true,
        dense: false,
    })
}
