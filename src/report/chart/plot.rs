//! A chart on its scales, for one width of screen.

use super::{Chart, Line, colour_class, dashes, marker, ticks};
use maud::{Markup, PreEscaped, html};

/// Characters of a name that fit beside the plot.
const NAME_CHARS: usize = 31;
/// Points of a line that is dashed.
const MOST_DASHED: usize = 60;
/// Width of a letter of a tick, and what the axis' name and the gaps beside a tick take.
const TICK_LETTER: f64 = 7.2;
const BESIDE_TICK: f64 = 26.0;
/// Between the names of two lines.
const NAME_GAP: f64 = 17.0;

/// Sizes of a drawing.
pub(super) struct Layout {
    class: &'static str,
    width: f64,
    height: f64,
    left: f64,
    top: f64,
    bottom: f64,
    /// Right of the plot without names, and for the names of the lines.
    right: f64,
    names: f64,
    /// Ticks along x.
    ticks: usize,
    /// Markers along a line.
    markers: usize,
}

pub(super) const LARGE: Layout = Layout {
    class: "large",
    width: 860.0,
    height: 330.0,
    left: 64.0,
    top: 14.0,
    bottom: 46.0,
    right: 20.0,
    names: 250.0,
    ticks: 6,
    markers: 12,
};
/// About as wide as a phone, so that a letter is as large as one of the page.
pub(super) const SMALL: Layout = Layout {
    class: "small",
    width: 366.0,
    height: 290.0,
    left: 56.0,
    top: 12.0,
    bottom: 44.0,
    right: 12.0,
    names: 12.0,
    ticks: 4,
    markers: 8,
};

/// A chart with its scales.
pub(super) struct Plot<'a> {
    chart: &'a Chart,
    layout: &'a Layout,
    named: bool,
    x: (f64, f64),
    /// Ticks of y with what they say, and the left edge of the plot, which leaves them room.
    ys: Vec<(f64, String)>,
    left: f64,
}

impl<'a> Plot<'a> {
    pub(super) fn new(chart: &'a Chart, layout: &'a Layout, named: bool) -> Self {
        let most = chart.lines.iter().flat_map(|l| &l.points).map(|p| p.0).fold(0.0, f64::max);
        let x = match chart.places.len() {
            0 => (0.0, if most > 0.0 { most * 1.02 } else { 1.0 }),
            n => (0.5, n as f64 + 0.5),
        };
        let (ys, decimals) = ticks(chart.range.0, chart.range.1, 6);
        let sign = |y: f64| if chart.zero && y > 1e-12 { "+" } else { "" };
        let said = |y: f64| (y, format!("{}{:.decimals$}", sign(y), y + 0.0));
        let ys: Vec<(f64, String)> = ys.into_iter().map(said).collect();
        let longest = ys.iter().map(|(_, said)| said.chars().count()).max().unwrap_or(0);
        let left = layout.left.max(BESIDE_TICK + TICK_LETTER * longest as f64);
        Self { chart, layout, named, x, ys, left }
    }

    pub(super) fn svg(&self, id: &str) -> Markup {
        let l = self.layout;
        let (right, bottom) = (self.right(), self.bottom());
        let view = format!("{} {right} {} {bottom} {} {}", self.left, l.top, self.x.0, self.x.1);
        html! {
            svg class=(l.class) viewBox={ "0 0 " (l.width) " " (l.height) } role="img" tabindex="0"
                aria-label={ (self.chart.title) ". Arrow keys read values." } data-view=(view) {
                (self.drawing(id))
                path.cursor d="" {}
            }
        }
    }

    /// A document of its own, with its style and its paper.
    pub(super) fn alone(&self, style: &str) -> Markup {
        let l = self.layout;
        html! {
            svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (l.width) " " (l.height) } width=(l.width)
                height=(l.height) role="img" aria-label=(self.chart.title) {
                style { (PreEscaped(style)) }
                rect width=(l.width) height=(l.height) style="fill:var(--paper)" {}
                (self.drawing("plot"))
            }
        }
    }

    fn drawing(&self, id: &str) -> Markup {
        let l = self.layout;
        html! {
            clipPath id=(id) {
                rect x=(self.left) y=(l.top) width=(self.right() - self.left) height=(self.bottom() - l.top) {}
            }
            (self.axes())
            g clip-path={ "url(#" (id) ")" } {
                @for line in &self.chart.lines { (self.band(line)) }
                @for line in self.chart.lines.iter().rev() { (self.line(line)) }
            }
            @for line in &self.chart.lines { (self.mark_outside(line)) }
            @if self.named { (self.names()) }
        }
    }

    fn right(&self) -> f64 {
        self.layout.width - if self.named { self.layout.names } else { self.layout.right }
    }

    fn bottom(&self) -> f64 {
        self.layout.height - self.layout.bottom
    }

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let (low, high) = self.chart.range;
        let (left, top) = (self.left, self.layout.top);
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let down = (high - y) / (high - low);
        (left + across * (self.right() - left), top + down * (self.bottom() - top))
    }

    fn axes(&self) -> Markup {
        let low = self.chart.range.0;
        let (left, top) = (self.left, self.layout.top);
        let (right, bottom) = (self.right(), self.bottom());
        let xs: Vec<(f64, String)> = if self.chart.places.is_empty() {
            let (xs, decimals) = ticks(self.x.0, self.x.1, self.layout.ticks);
            xs.into_iter().map(|x| (x, format!("{x:.decimals$}"))).collect()
        } else {
            (1..).zip(&self.chart.places).map(|(i, name)| (f64::from(i), name.clone())).collect()
        };
        let height = |y: f64| format!("{:.1}", self.at(self.x.0, y).1);
        let strong = |y: f64| self.chart.zero && y.abs() < 1e-12;
        let middle = (top + bottom) / 2.0;
        html! {
            @for (y, said) in &self.ys {
                path class=(if strong(*y) { "axis" } else { "grid" }) d={ "M" (left) " " (height(*y)) "H" (right) } {}
                text.tick x=(left - 7.0) y=(height(*y)) dy="4" text-anchor="end" { (said) }
            }
            @for (x, name) in xs {
                @let u = format!("{:.1}", self.at(x, low).0);
                path.axis d={ "M" (u) " " (bottom) "v5" } {}
                text.tick x=(u) y=(bottom + 18.0) text-anchor="middle" { (name) }
            }
            path.axis d={ "M" (left) " " (top) "V" (bottom) "H" (right) } {}
            text.name x=((left + right) / 2.0) y=(self.layout.height - 7.0) text-anchor="middle" {
                (fitted(&self.chart.x, right - left))
            }
            text.name transform={ "translate(13 " (middle) ") rotate(-90)" } text-anchor="middle" {
                (self.chart.y)
            }
        }
    }

    fn path(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let shown = |(x, y)| {
            let (u, v) = self.at(x, y);
            // Far outside, where SVG's numbers end.
            format!("{u:.1} {:.1}", v.clamp(-1e5, 1e5))
        };
        points.map(shown).collect::<Vec<_>>().join("L")
    }

    fn band(&self, line: &Line) -> Markup {
        if line.band.len() != line.points.len() || line.band.iter().all(|(low, high)| low == high) {
            return html! {};
        }
        let ends = || line.points.iter().zip(&line.band);
        let top = ends().map(|(p, b)| (p.0, b.1));
        let back = ends().rev().map(|(p, b)| (p.0, b.0));
        html! {
            path class={ "band " (colour_class(line.style)) } d={ "M" (self.path(top.chain(back))) "z" } {}
        }
    }

    fn line(&self, line: &Line) -> Markup {
        let dense = self.chart.dense;
        let n = line.points.len();
        if n == 0 {
            return html! {};
        }
        // Dashes of a line that goes up and down at every point cannot be told from gaps.
        let dashed = !dense && n <= MOST_DASHED;
        // A dozen markers tell a line as well as a hundred.
        let every = n.div_ceil(self.layout.markers).max(1);
        let marked = |i: &usize| !dense && (i.is_multiple_of(every) || i + 1 == n);
        html! {
            g class=(colour_class(line.style)) {
                path class={ "line" @if dense { " thin" } } d={ "M" (self.path(line.points.iter().copied())) }
                    stroke-dasharray=[dashed.then(|| dashes(line.style))] {}
                @for i in (0..n).filter(marked) {
                    @let (u, v) = self.at(line.points[i].0, line.points[i].1);
                    @if (-1e5..1e5).contains(&v) {
                        g transform={ "translate(" (format!("{u:.1} {v:.1}")) ")" } { (marker(line.style)) }
                    }
                }
            }
        }
    }

    /// An arrow where a line ends above or below what is shown.
    fn mark_outside(&self, line: &Line) -> Markup {
        let Some(&(x, y)) = line.points.last() else { return html! {} };
        let (low, high) = self.chart.range;
        if (low..=high).contains(&y) {
            return html! {};
        }
        let u = self.at(x, low).0;
        let arrow = if y > high {
            format!("M{:.1} {}h10l-5-8z", u - 5.0, self.layout.top + 8.0)
        } else {
            format!("M{:.1} {}h10l-5 8z", u - 5.0, self.bottom() - 8.0)
        };
        html! {
            g class=(colour_class(line.style)) {
                path.off.full d=(arrow) { title { (line.name) " ends at " (format!("{y:.4}")) } }
            }
        }
    }

    /// Names beside the plot at the height of each line's end, moved apart where they would touch.
    fn names(&self) -> Markup {
        let (right, top, bottom) = (self.right(), self.layout.top, self.bottom());
        let mut ends: Vec<(&Line, (f64, f64))> =
            self.chart.lines.iter().filter_map(|l| Some((l, *l.points.last()?))).collect();
        ends.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
        let wanted: Vec<f64> =
            ends.iter().map(|(_, p)| self.at(p.0, p.1).1.clamp(top, bottom)).collect();
        let places = spread(&wanted, NAME_GAP, top, bottom);
        html! {
            @for (((line, end), v), wanted) in ends.iter().zip(places).zip(wanted) {
                @let u = self.at(end.0, end.1).0 + 5.0;
                @let lead = format!("M{u:.1} {wanted:.1}L{:.1} {wanted:.1}L{:.1} {v:.1}", right.max(u), right + 12.0);
                path.lead d=(lead) {}
                g class=(colour_class(line.style)) {
                    path.line d={ "M" (right + 14.0) " " (format!("{v:.1}")) "h26" } stroke-dasharray=(dashes(line.style)) {}
                    g transform={ "translate(" (right + 27.0) " " (format!("{v:.1}")) ")" } { (marker(line.style)) }
                }
                text.label x=(right + 45.0) y=(format!("{:.1}", v + 4.0)) {
                    (shortened(&line.name, NAME_CHARS)) title { (line.name) }
                }
            }
        }
    }
}

/// The name as far as there is room for it.
fn shortened(name: &str, most: usize) -> String {
    if name.chars().count() <= most {
        return name.to_string();
    }
    name.chars().take(most - 1).chain(['…']).collect()
}

/// A text of an axis in so much room, in letters of about six units.
fn fitted(text: &str, room: f64) -> String {
    shortened(text, ((room + 40.0) / 6.0) as usize)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_distance_and_their_order() {
        assert_eq!(spread(&[10.0, 100.0], 17.0, 0.0, 200.0), [10.0, 100.0]);
        assert_eq!(spread(&[10.0, 12.0, 13.0], 17.0, 0.0, 200.0), [10.0, 27.0, 44.0]);
        assert_eq!(spread(&[198.0, 199.0, 200.0], 17.0, 0.0, 200.0), [166.0, 183.0, 200.0]);
    }

    #[test]
    fn the_name_of_the_axis_stands_beside_its_ticks() {
        for (range, longest) in [((3.9, 4.6), 3), ((-0.004, 0.0043), 6), ((1e6, 1.0001e6), 7)] {
            let chart = Chart {
                title: String::new(),
                x: String::new(),
                y: "nats".into(),
                lines: Vec::new(),
                range,
                places: Vec::new(),
                zero: range.0 < 0.0,
                dense: false,
            };
            for layout in [&LARGE, &SMALL] {
                let plot = Plot::new(&chart, layout, false);
                let letters = plot.ys.iter().map(|(_, said)| said.len()).max().unwrap();
                assert_eq!(letters, longest, "{:?}", plot.ys);
                // A tick ends 7 in front of the plot; the name's letters reach from 4 to 17.
                assert!(plot.left - 7.0 - TICK_LETTER * letters as f64 >= 17.0, "{}", plot.left);
            }
        }
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(shortened("short", NAME_CHARS), "short");
        assert_eq!(shortened(&"x".repeat(40), NAME_CHARS).chars().count(), NAME_CHARS);
    }
}
