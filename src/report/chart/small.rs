//! Pictures in the row of a table. Both have their numbers in words for a pointer, a finger or the
//! tab key; what lies outside the scale is an arrow at its edge.

use super::colour_class;
use maud::{Markup, html};

const LEFT: f64 = 8.0;
const WIDTH: f64 = 134.0;

/// Place of a value that is clamped to the scale.
fn place(x: f64, scale: (f64, f64)) -> f64 {
    let share = (x.clamp(scale.0, scale.1) - scale.0) / (scale.1 - scale.0).max(1e-12);
    LEFT + share * WIDTH
}

fn fits(x: f64, scale: (f64, f64)) -> bool {
    // Rounding moves the ends of a scale that is made from the values.
    let slack = 1e-9 * (scale.1 - scale.0);
    x >= scale.0 - slack && x <= scale.1 + slack
}

/// An arrow at the edge that a value lies beyond.
fn arrow(x: f64, scale: (f64, f64)) -> Markup {
    if x < scale.0 {
        html! { path.off.full d="M7 5v10l-6-5z" {} }
    } else {
        html! { path.off.full d="M143 5v10l6-5z" {} }
    }
}

fn dot(x: f64, scale: (f64, f64)) -> Markup {
    if !fits(x, scale) {
        return arrow(x, scale);
    }
    html! { circle.full cx={ (format!("{:.1}", place(x, scale))) } cy="10" r="3.2" {} }
}

fn around(style: usize, said: &str, inside: &Markup) -> Markup {
    html! {
        span.strip tabindex="0" title=(said) aria-label=(said) role="img" {
            svg class={ "strip " (colour_class(style)) } viewBox="0 0 150 20" aria-hidden="true" { (inside) }
        }
    }
}

/// One tick per value, a dot at the mean, a line at `mark`; all on one scale.
pub fn strip(
    style: usize,
    values: &[(String, f64)],
    mean: f64,
    scale: (f64, f64),
    mark: Option<f64>,
) -> Markup {
    let said: Vec<String> = (values.iter().map(|(name, x)| format!("{name}: {x:.4}")))
        .chain([format!("mean: {mean:.4}")])
        .collect();
    around(
        style,
        &said.join("; "),
        &html! {
            path.grid d="M8 10H142" {}
            @if let Some(mark) = mark.filter(|m| fits(*m, scale)) {
                path.mark d={ (format!("M{:.1} 1V19", place(mark, scale))) } {}
            }
            @for (_, x) in values {
                @if fits(*x, scale) {
                    path.line d={ (format!("M{:.1} 5V15", place(*x, scale))) } {}
                } @else { (arrow(*x, scale)) }
            }
            (dot(mean, scale))
        },
    )
}

/// A bar from low to high, a dot at the mean, a line at 0.
pub fn interval(style: usize, mean: f64, ends: Option<(f64, f64)>, scale: (f64, f64)) -> Markup {
    let said = match ends {
        Some((low, high)) => {
            format!("difference: {mean:+.4}; 95 % interval: {low:+.4} to {high:+.4}")
        }
        None => format!("difference: {mean:+.4}; no interval"),
    };
    around(
        style,
        &said,
        &html! {
            path.mark d={ (format!("M{:.1} 1V19", place(0.0, scale))) } {}
            @if let Some((low, high)) = ends {
                path.line d={ (format!("M{:.1} 10H{:.1}", place(low, scale), place(high, scale))) } {}
                @for end in [low, high] {
                    @if fits(end, scale) {
                        path.line d={ (format!("M{:.1} 6V14", place(end, scale))) } {}
                    } @else { (arrow(end, scale)) }
                }
            }
            (dot(mean, scale))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_is_an_arrow_and_its_number_is_said() {
        let whole = interval(1, -0.01, Some((-0.02, 0.03)), (-0.05, 0.05)).into_string();
        assert!(!whole.contains("off") && whole.contains("95 % interval: -0.0200 to +0.0300"));
        let wide = interval(1, -0.01, Some((-4.0, 0.03)), (-0.05, 0.05)).into_string();
        assert_eq!(wide.matches("class=\"off full\"").count(), 1);
        assert!(wide.contains("M7 5v10l-6-5z") && wide.contains("<circle"), "to the left: {wide}");
        let gone = interval(1, 3.0, Some((2.0, 4.0)), (-0.05, 0.05)).into_string();
        assert!(gone.contains("M143 5v10l6-5z") && !gone.contains("<circle"), "{gone}");
        assert!(gone.contains("difference: +3.0000"));
    }

    #[test]
    fn a_strip_has_a_tick_for_each_value() {
        let values = [("seed 1".to_string(), 4.5), ("seed <2>".to_string(), 4.6)];
        let text = strip(2, &values, 4.55, (4.5, 4.6), Some(4.52)).into_string();
        assert_eq!(text.matches("5V15").count(), 2);
        assert!(text.contains("class=\"strip k2\"") && text.contains("seed &lt;2&gt;: 4.6000"));
        assert!(text.contains("class=\"mark\"") && text.contains("tabindex=\"0\""));
        let off = strip(2, &[("seed 1".to_string(), 9.0)], 9.0, (4.5, 4.6), None).into_string();
        assert!(off.contains("off") && !off.contains("<circle") && !off.contains("class=\"mark\""));
    }
}
