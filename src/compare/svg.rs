//! Charts as SVG, for the screen and for paper: a line is told from another by colour, by dashes
//! and by its marker.

use crate::report::page::escape;
use std::fmt::Write;

/// Lines that a chart may show before it becomes a tangle.
pub const MOST_LINES: usize = 8;

/// Colour-blind-safe colours (Okabe and Ito 2008; grey in place of their yellow, which is too light
/// on white). The first, solid black, is the baseline's.
const COLOURS: [&str; MOST_LINES] =
    ["#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777"];
const DASHES: [&str; MOST_LINES] =
    ["", "7 3", "2 3", "10 3 2 3", "4 2", "12 4", "6 2 2 2 2 2", "1 2"];

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;
/// Right of the plot, for the names of the lines.
const NAMES: f64 = 250.0;
/// Characters of a name that fit there.
const NAME_CHARS: usize = 31;
/// Between the names of two lines.
const NAME_GAP: f64 = 17.0;

/// One line.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Its place among [`MOST_LINES`] styles.
    pub style: usize,
    /// x and y, by x.
    pub points: Vec<(f64, f64)>,
    /// Lowest and highest y of every point; empty for no band.
    pub band: Vec<(f64, f64)>,
}

/// A chart of at most [`MOST_LINES`] lines.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What it shows, for those who cannot see it.
    pub title: String,
    /// Name and unit of x.
    pub x: String,
    /// Name and unit of y.
    pub y: String,
    /// The lines.
    pub lines: Vec<Line>,
    /// Part of y that is shown.
    pub range: (f64, f64),
    /// Names of the places 1, 2, ... of x; empty where x is a quantity.
    pub places: Vec<String>,
    /// Whether to draw y = 0 strongly.
    pub zero: bool,
}

/// About `n` round numbers that cover low to high, and how many decimals they need.
pub fn ticks(low: f64, high: f64, n: usize) -> (Vec<f64>, usize) {
    let span = high - low;
    if !span.is_finite() || span <= 0.0 {
        return (vec![low], 2);
    }
    let raw = span / n as f64;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|s| *s >= raw)
        .unwrap_or(10.0 * power);
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    ((first..=last).map(|i| i as f64 * step).collect(), decimals)
}

/// A marker of the style around (0, 0).
fn marker(style: usize) -> String {
    let colour = COLOURS[style % MOST_LINES];
    let filled = |d: &str| format!("<path d=\"{d}\" fill=\"{colour}\"/>");
    let stroked = |d: &str| {
        format!("<path d=\"{d}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>")
    };
    match style % MOST_LINES {
        0 => format!("<circle r=\"3.4\" fill=\"{colour}\"/>"),
        1 => filled("M-3.2-3.2h6.4v6.4h-6.4z"),
        2 => filled("M0-4.2L4 3H-4z"),
        3 => filled("M0-4.6L4.2 0L0 4.6L-4.2 0z"),
        4 => filled("M0 4.2L4-3H-4z"),
        5 => format!("<circle r=\"3.4\" fill=\"#fff\" stroke=\"{colour}\" stroke-width=\"1.6\"/>"),
        6 => stroked("M-3.6-3.6L3.6 3.6M-3.6 3.6L3.6-3.6"),
        _ => stroked("M0-4.4V4.4M-4.4 0H4.4"),
    }
}

fn stroke(style: usize) -> String {
    let dash = DASHES[style % MOST_LINES];
    let dash =
        if dash.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dash}\"") };
    format!("stroke=\"{}\" stroke-width=\"1.8\" fill=\"none\"{dash}", COLOURS[style % MOST_LINES])
}

/// The name as far as there is room for it.
fn shortened(name: &str) -> String {
    if name.chars().count() <= NAME_CHARS {
        return name.to_string();
    }
    name.chars().take(NAME_CHARS - 1).chain(['…']).collect()
}

impl Chart {
    /// The chart as an `<svg>` element. `id` must be unique in its page.
    pub fn svg(&self, id: &str) -> String {
        let plot = Plot::new(self);
        let mut out = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\
             <clipPath id=\"{id}\"><rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/></clipPath>",
            escape(&self.title),
            plot.width(),
            plot.height(),
        );
        plot.axes(&mut out);
        let _ = write!(out, "<g clip-path=\"url(#{id})\">");
        for line in &self.lines {
            plot.band(line, &mut out);
        }
        for line in self.lines.iter().rev() {
            plot.line(line, &mut out);
        }
        out += "</g>";
        plot.names(&mut out);
        out + "</svg>"
    }
}

/// A chart with its scales.
struct Plot<'a> {
    chart: &'a Chart,
    x: (f64, f64),
}

impl<'a> Plot<'a> {
    fn new(chart: &'a Chart) -> Self {
        let most = chart.lines.iter().flat_map(|l| &l.points).map(|p| p.0).fold(0.0, f64::max);
        let x = match chart.places.len() {
            0 => (0.0, if most > 0.0 { most * 1.02 } else { 1.0 }),
            n => (0.5, n as f64 + 0.5),
        };
        Self { chart, x }
    }

    fn width(&self) -> f64 {
        WIDTH - LEFT - NAMES
    }

    fn height(&self) -> f64 {
        HEIGHT - TOP - BOTTOM
    }

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let (low, high) = self.chart.range;
        let down = (high - y) / (high - low);
        (LEFT + (x - self.x.0) / (self.x.1 - self.x.0) * self.width(), TOP + down * self.height())
    }

    fn axes(&self, out: &mut String) {
        let (low, high) = self.chart.range;
        let (right, bottom) = (LEFT + self.width(), TOP + self.height());
        let (ys, decimals) = ticks(low, high, 6);
        for y in ys {
            let v = self.at(self.x.0, y).1;
            let class = if self.chart.zero && y.abs() < 1e-12 { "axis" } else { "grid" };
            let sign = if self.chart.zero && y > 1e-12 { "+" } else { "" };
            let _ = write!(
                out,
                "<path class=\"{class}\" d=\"M{LEFT} {v:.1}H{right:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{sign}{:.decimals$}</text>",
                LEFT - 7.0,
                v + 4.0,
                y + 0.0,
            );
        }
        let places: Vec<(f64, String)> = if self.chart.places.is_empty() {
            let (xs, decimals) = ticks(self.x.0, self.x.1, 6);
            xs.into_iter().map(|x| (x, format!("{x:.decimals$}"))).collect()
        } else {
            (1..).zip(&self.chart.places).map(|(i, name)| (f64::from(i), name.clone())).collect()
        };
        for (x, name) in places {
            let u = self.at(x, low).0;
            let _ = write!(
                out,
                "<path class=\"axis\" d=\"M{u:.1} {bottom:.1}v5\"/>\
                 <text class=\"tick\" x=\"{u:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 18.0,
                escape(&name)
            );
        }
        let middle = (TOP + bottom) / 2.0;
        let _ = write!(
            out,
            "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom:.1}H{right:.1}\"/>\
             <text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"name\" transform=\"translate(14 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            LEFT + self.width() / 2.0,
            HEIGHT - 8.0,
            escape(&self.chart.x),
            escape(&self.chart.y),
        );
    }

    fn band(&self, line: &Line, out: &mut String) {
        if line.band.len() != line.points.len() || line.band.iter().all(|(low, high)| low == high) {
            return;
        }
        let ends = || line.points.iter().zip(&line.band);
        let top = ends().map(|(p, b)| self.at(p.0, b.1));
        let back = ends().rev().map(|(p, b)| self.at(p.0, b.0));
        let path: Vec<String> = top.chain(back).map(|(u, v)| format!("{u:.1} {v:.1}")).collect();
        let colour = COLOURS[line.style % MOST_LINES];
        let _ = write!(
            out,
            "<path d=\"M{}z\" fill=\"{colour}\" fill-opacity=\".13\"/>",
            path.join("L")
        );
    }

    fn line(&self, line: &Line, out: &mut String) {
        let ends: Vec<(f64, f64)> = line.points.iter().map(|p| self.at(p.0, p.1)).collect();
        let path: Vec<String> = ends.iter().map(|(u, v)| format!("{u:.1} {v:.1}")).collect();
        let _ = write!(out, "<path d=\"M{}\" {}/>", path.join("L"), stroke(line.style));
        // A dozen markers tell a line as well as a hundred.
        let every = ends.len().div_ceil(12).max(1);
        for (i, (u, v)) in ends.iter().enumerate() {
            if i % every == 0 || i + 1 == ends.len() {
                let _ = write!(
                    out,
                    "<g transform=\"translate({u:.1} {v:.1})\">{}</g>",
                    marker(line.style)
                );
            }
        }
    }

    /// Names beside the plot at the height of each line's end, moved apart where they would touch.
    fn names(&self, out: &mut String) {
        let (right, bottom) = (LEFT + self.width(), TOP + self.height());
        let mut ends: Vec<(&Line, (f64, f64))> =
            self.chart.lines.iter().filter_map(|l| Some((l, *l.points.last()?))).collect();
        ends.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
        let wanted: Vec<f64> =
            ends.iter().map(|(_, p)| self.at(p.0, p.1).1.clamp(TOP, bottom)).collect();
        let places = spread(&wanted, NAME_GAP, TOP, bottom);
        for (((line, end), v), wanted) in ends.iter().zip(places).zip(wanted) {
            let u = self.at(end.0, end.1).0;
            let _ = write!(
                out,
                "<path class=\"lead\" d=\"M{:.1} {wanted:.1}L{:.1} {wanted:.1}L{:.1} {v:.1}\"/>\
                 <path d=\"M{:.1} {v:.1}h26\" {}/><g transform=\"translate({:.1} {v:.1})\">{}</g>\
                 <text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{}<title>{}</title></text>",
                u + 5.0,
                right.max(u + 5.0),
                right + 12.0,
                right + 14.0,
                stroke(line.style),
                right + 27.0,
                marker(line.style),
                right + 45.0,
                v + 4.0,
                escape(&shortened(&line.name)),
                escape(&line.name),
            );
        }
    }
}

/// Places as near to `wanted` (ascending) as a gap between neighbours allows, from `top` to
/// `bottom` if they fit.
fn spread(wanted: &[f64], gap: f64, top: f64, bottom: f64) -> Vec<f64> {
    let mut places = wanted.to_vec();
    for i in 1..places.len() {
        places[i] = places[i].max(places[i - 1] + gap);
    }
    // Back up from the lower edge.
    let mut limit = bottom.max(top + gap * places.len().saturating_sub(1) as f64);
    for place in places.iter_mut().rev() {
        *place = place.min(limit);
        limit = *place - gap;
    }
    places
}

/// A small picture in a table's row: one tick per value, a dot at the mean, a line at `mark`; all
/// on one scale.
pub fn strip(values: &[f64], mean: f64, scale: (f64, f64), mark: Option<f64>) -> String {
    let u = |x: f64| 6.0 + (x - scale.0) / (scale.1 - scale.0).max(1e-12) * 138.0;
    let mut out = String::from(
        "<svg class=\"strip\" viewBox=\"0 0 150 20\"><path class=\"grid\" d=\"M6 10H144\"/>",
    );
    if let Some(mark) = mark {
        let _ = write!(out, "<path class=\"mark\" d=\"M{:.1} 1V19\"/>", u(mark));
    }
    for x in values {
        let _ = write!(out, "<path class=\"value\" d=\"M{:.1} 5V15\"/>", u(*x));
    }
    let _ = write!(out, "<circle cx=\"{:.1}\" cy=\"10\" r=\"3.2\"/></svg>", u(mean));
    out
}

/// An interval in a table's row: a bar from low to high, a dot at the mean, a line at 0.
pub fn interval(mean: f64, ends: Option<(f64, f64)>, scale: (f64, f64)) -> String {
    let u = |x: f64| {
        6.0 + (x.clamp(scale.0, scale.1) - scale.0) / (scale.1 - scale.0).max(1e-12) * 138.0
    };
    let mut out = format!(
        "<svg class=\"strip\" viewBox=\"0 0 150 20\"><path class=\"mark\" d=\"M{:.1} 1V19\"/>",
        u(0.0)
    );
    if let Some((low, high)) = ends {
        let arrow = |inside: bool, x: f64, d: f64| {
            if inside { format!("M{x:.1} 6V14") } else { format!("M{:.1} 6l{d} 4l{} 4", x, -d) }
        };
        let _ = write!(
            out,
            "<path class=\"value\" d=\"M{:.1} 10H{:.1}{}{}\"/>",
            u(low),
            u(high),
            arrow(low >= scale.0, u(low), -4.0),
            arrow(high <= scale.1, u(high), 4.0)
        );
    }
    let _ = write!(out, "<circle cx=\"{:.1}\" cy=\"10\" r=\"3.2\"/></svg>", u(mean));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let (ys, decimals) = ticks(4.43, 4.97, 6);
        assert_eq!((ys.len(), decimals), (5, 1));
        assert!((ys[0] - 4.5).abs() < 1e-12 && (ys[4] - 4.9).abs() < 1e-12, "{ys:?}");
        assert_eq!(ticks(0.0, 1000.0, 5), (vec![0.0, 200.0, 400.0, 600.0, 800.0, 1000.0], 0));
        assert_eq!(ticks(2.0, 2.0, 5).0, [2.0]);
        let (zs, decimals) = ticks(-0.012, 0.031, 6);
        assert!(zs.contains(&0.0) && decimals == 2, "{zs:?}");
    }

    #[test]
    fn names_keep_their_distance_and_their_order() {
        assert_eq!(spread(&[10.0, 100.0], 17.0, 0.0, 200.0), [10.0, 100.0]);
        assert_eq!(spread(&[10.0, 12.0, 13.0], 17.0, 0.0, 200.0), [10.0, 27.0, 44.0]);
        assert_eq!(spread(&[198.0, 199.0, 200.0], 17.0, 0.0, 200.0), [166.0, 183.0, 200.0]);
    }

    #[test]
    fn text_is_escaped_and_long_names_are_cut() {
        assert_eq!(escape("a<b & \"c\">"), "a&lt;b &amp; &quot;c&quot;&gt;");
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"x".repeat(40)).chars().count(), NAME_CHARS);
    }
}
