//! Charts as SVG, for screens of any width and for paper: a line is told from another by colour, by
//! dashes and by its marker. Colours are names that the page's style gives a value, light or dark.

mod plot;
mod scale;
mod small;

pub use scale::{decimals, fitting, ticks, window};
pub use small::{interval, strip};

use maud::{Markup, html};
use plot::{LARGE, Plot, SMALL};
use serde_json::{Value, json};

/// Lines that a chart may show before it becomes a tangle. Their colours are safe for colour-blind
/// eyes (Okabe and Ito 2008; grey in place of their yellow, and orange and sky blue darker, for white
/// paper). The first, the text's own, is the baseline's.
pub const MOST_LINES: usize = 8;
/// Lines whose names stand beside the plot.
const MOST_NAMES: usize = 12;

/// Colours, and what charts look like.
const STYLE: &str = include_str!("../chart.css");

const DASHES: [&str; MOST_LINES] =
    ["none", "7 3", "2 3", "10 3 2 3", "4 2", "12 4", "6 2 2 2 2 2", "1 2"];

/// One line.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// What it is one of; lines of one kind look alike, and the legend names the kind once.
    pub kind: String,
    /// How it looks: 0 is the baseline's alone, others repeat their colours after seven, with
    /// another marker.
    pub style: usize,
    /// x and y, by x.
    pub points: Vec<(f64, f64)>,
    /// Lowest and highest y of every point; empty for no band.
    pub band: Vec<(f64, f64)>,
}

/// A chart.
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
    /// Whether points are many and without markers.
    pub dense: bool,
}

/// The colour of a style, out of [`MOST_LINES`].
pub fn colour(style: usize) -> usize {
    if style == 0 { 0 } else { 1 + (style - 1) % (MOST_LINES - 1) }
}

/// The class that gives a style's colour to what is inside.
pub fn colour_class(style: usize) -> String {
    format!("k{}", colour(style))
}

/// Dashes of a style, as SVG writes them.
fn dashes(style: usize) -> &'static str {
    DASHES[colour(style)]
}

/// A marker of the style around (0, 0). Styles of one colour have different ones.
fn marker(style: usize) -> Markup {
    let round = style.saturating_sub(1) / (MOST_LINES - 1);
    match (colour(style) + round) % MOST_LINES {
        0 => html! { circle.full r="3.4" {} },
        1 => html! { path.full d="M-3.2-3.2h6.4v6.4h-6.4z" {} },
        2 => html! { path.full d="M0-4.2L4 3H-4z" {} },
        3 => html! { path.full d="M0-4.6L4.2 0L0 4.6L-4.2 0z" {} },
        4 => html! { path.full d="M0 4.2L4-3H-4z" {} },
        5 => html! { circle.hollow r="3.4" {} },
        6 => html! { path.line d="M-3.6-3.6L3.6 3.6M-3.6 3.6L3.6-3.6" {} },
        _ => html! { path.line d="M0-4.4V4.4M-4.4 0H4.4" {} },
    }
}

/// A piece of line with its marker, for legends and tables.
pub fn key(style: usize) -> Markup {
    html! {
        svg class={ "key " (colour_class(style)) } viewBox="0 0 26 12" aria-hidden="true" {
            path.line d="M0 6h26" stroke-dasharray=(dashes(style)) {}
            g transform="translate(13 6)" { (marker(style)) }
        }
    }
}

impl Chart {
    /// The chart as a `<figure>`: drawn for a wide screen and for a narrow one, of which the style
    /// shows one, with its numbers for the script. `id` must be unique in its page.
    pub fn figure(&self, id: &str) -> Markup {
        let crowded = self.lines.len() > MOST_NAMES;
        let places = json!(self.places).to_string();
        let mut kinds: Vec<(usize, &str)> = Vec::new();
        for kind in self.lines.iter().map(|line| (line.style, line.kind.as_str())) {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        html! {
            figure.chart data-lines=(self.numbers()) data-x=(self.x) data-places=(places) {
                (Plot::new(self, &LARGE, !crowded).svg(&format!("{id}-l")))
                (Plot::new(self, &SMALL, false).svg(&format!("{id}-s")))
                ul class={ "legend" @if crowded { " shown" } } {
                    @for (style, kind) in kinds { li { (key(style)) (kind) } }
                }
            }
        }
    }

    /// The chart as a file of its own that needs nothing else, light or dark as its reader is.
    pub fn file(&self) -> String {
        let plot = Plot::new(self, &LARGE, self.lines.len() <= MOST_NAMES);
        plot.alone(STYLE).into_string() + "\n"
    }

    /// What the script shows under a pointer.
    fn numbers(&self) -> String {
        let round = |x: f64, unit: f64| (x * unit).round() / unit;
        let points = |line: &Line| -> Vec<Value> {
            line.points.iter().map(|p| json!([round(p.0, 1e6), round(p.1, 1e5)])).collect()
        };
        let lines: Vec<Value> = (self.lines.iter())
            .map(|l| json!({"name": l.name, "key": colour_class(l.style), "points": points(l)}))
            .collect();
        json!(lines).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, style: usize, ys: &[f64]) -> Line {
        let points = (0..).map(f64::from).zip(ys.iter().copied()).collect();
        Line { name: name.into(), kind: name.into(), style, points, band: Vec::new() }
    }

    fn chart(lines: Vec<Line>) -> Chart {
        Chart {
            title: "T".into(),
            x: "steps".into(),
            y: "loss".into(),
            lines,
            range: (1.0, 5.0),
            places: Vec::new(),
            zero: false,
            dense: false,
        }
    }

    #[test]
    fn names_are_escaped_and_the_numbers_are_those_of_the_lines() {
        let text = chart(vec![line("a<b>\"&", 1, &[4.0, 3.123_456_7])]).figure("x").into_string();
        assert!(text.contains("a&lt;b&gt;&quot;&amp;") && !text.contains("a<b>"));
        let data = text.split("data-lines=\"").nth(1).unwrap().split('"').next().unwrap();
        let data = data.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">");
        let data: Value = serde_json::from_str(&data.replace("&amp;", "&")).unwrap();
        assert_eq!(data[0]["points"], json!([[0.0, 4.0], [1.0, 3.12346]]));
        assert_eq!((&data[0]["name"], &data[0]["key"]), (&json!("a<b>\"&"), &json!("k1")));
    }

    #[test]
    fn a_chart_is_there_for_both_widths_with_a_place_for_keys_and_fingers() {
        let text = chart(vec![line("a", 0, &[4.0, 3.0]), line("b", 1, &[4.0, 2.0])]).figure("x");
        let text = text.into_string();
        for size in ["large", "small"] {
            let svg = text.split(&format!("<svg class=\"{size}\"")).nth(1).unwrap();
            let tag = svg.split('>').next().unwrap();
            assert!(tag.contains("tabindex=\"0\"") && tag.contains("data-view="), "{tag}");
            let svg = svg.split("</svg>").next().unwrap();
            assert!(svg.contains("class=\"cursor\""));
            assert!(svg.matches("class=\"line\" d=\"M").count() >= 2, "two lines");
        }
        assert_eq!(text.matches("<li>").count(), 2);
    }

    #[test]
    fn a_file_stands_alone_in_both_schemes() {
        let text = chart(vec![line("a < b", 0, &[4.0, 3.0]), line("c", 1, &[4.0, 2.0])]).file();
        assert!(text.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""), "{text}");
        assert!(text.contains("prefers-color-scheme:dark") && text.contains("a &lt; b"));
        assert!(
            !text.contains("tabindex=") && !text.contains("class=\"cursor"),
            "nothing to press"
        );
        assert_eq!(text.matches("<svg").count(), 1);
        // Well-formed: every tag that is opened is closed.
        let opened = text.matches('<').count() - text.matches("</").count();
        let closed = text.matches("</").count() + text.matches("/>").count();
        assert_eq!(opened, closed, "{text}");
    }

    #[test]
    fn a_line_that_ends_outside_has_a_mark_at_the_edge() {
        let inside = chart(vec![line("a", 0, &[9.0, 3.0])]).figure("x").into_string();
        assert!(!inside.contains("class=\"off"));
        let above = chart(vec![line("a", 0, &[3.0, 9.25])]).figure("x").into_string();
        assert!(
            above.contains("class=\"off full\"") && above.contains("ends at 9.2500"),
            "{above}"
        );
    }

    #[test]
    fn a_legend_names_a_kind_once() {
        let mut lines = vec![line("a seed 1", 0, &[4.0]), line("a seed 2", 0, &[3.0])];
        lines.iter_mut().for_each(|l| l.kind = "a".into());
        let text = chart(lines).figure("x").into_string();
        let legend = text.split("<ul").nth(1).unwrap();
        assert!(legend.matches("<li>").count() == 1 && legend.contains("</svg>a</li>"), "{legend}");
    }

    #[test]
    fn styles_repeat_colours_with_other_markers() {
        assert_eq!([0, 1, 7, 8, 14, 15].map(colour), [0, 1, 7, 1, 7, 1]);
        let looks: std::collections::BTreeSet<String> =
            (0..22).map(|s| format!("{} {}", colour(s), marker(s).into_string())).collect();
        assert_eq!(looks.len(), 22);
    }
}
