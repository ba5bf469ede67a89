//! The page: figures, histogram, text.

use super::{Figures, Inspection, Token, histogram};
use crate::report::page::{escape, page as html};
use std::fmt::Write;

/// Shades of the scale, white to dark blue (ColorBrewer's Blues, safe for every colour vision), by
/// rank of score.
const SHADES: [&str; 6] = ["#ffffff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6"];
const BINS: usize = 40;

/// The whole page, self-contained.
pub fn page(found: &Inspection) -> String {
    let scale = Scale::of(found);
    let title = format!("{} scored by {}", found.model, found.score);
    let mut body = format!("<h1>{}</h1>", escape(&title));
    body += &head(found);
    body += &levels(found);
    body += &chart(found);
    body += &scale.legend(found);
    body += &text(found, &scale);
    body += &extremes(found);
    html(&title, STYLE, &body)
}

fn head(found: &Inspection) -> String {
    let predicted = found.tokens.len() - 1;
    let teacher =
        found.teacher.as_ref().map_or_else(String::new, |t| format!(" Teacher: {}.", escape(t)));
    let cut = if found.tokens.len() < found.tokens_of_text {
        format!(" The first {} of {} tokens of the text.", found.tokens.len(), found.tokens_of_text)
    } else {
        String::new()
    };
    format!(
        "<p>Score, in nats: {}{teacher} {predicted} predicted tokens, mean score {:.3}, mean cross-entropy {:.3}.{cut}</p>",
        found.score.meaning(),
        found.score_mean,
        found.ce
    )
}

fn levels(found: &Inspection) -> String {
    let mut out = String::from(
        "<table><thead><tr><th>alpha</th><th>VaR (threshold)</th><th>CVaR</th><th>kept</th><th>share</th>\
         <th>CE of kept</th><th>CE of dropped</th></tr></thead><tbody>",
    );
    let n = (found.tokens.len() - 1) as f64;
    for level in &found.levels {
        let marked = if level.alpha == found.mark { " (marked)" } else { "" };
        let _ = write!(
            out,
            "<tr><th>{}{marked}</th><td>{:.3}</td><td>{:.3}</td><td>{}</td><td>{:.1} %</td><td>{:.3}</td><td>{}</td></tr>",
            level.alpha,
            level.var,
            level.cvar,
            level.kept,
            100.0 * level.kept as f64 / n,
            level.kept_ce,
            level.dropped_ce.map_or_else(|| "-".into(), |ce| format!("{ce:.3}")),
        );
    }
    out + "</tbody></table>"
}

fn figures(found: &Inspection) -> impl Iterator<Item = Figures> + '_ {
    found.tokens.iter().filter_map(|t| t.figures)
}

/// Histogram of the scores, with a line at every VaR and a triangle at every CVaR.
fn chart(found: &Inspection) -> String {
    const WIDTH: f64 = 860.0;
    const HEIGHT: f64 = 200.0;
    const LEFT: f64 = 50.0;
    let scores: Vec<f32> = figures(found).map(|f| f.score).collect();
    let (low, width, counts) = histogram(&scores, BINS);
    let most = counts.iter().copied().max().unwrap_or(1).max(1) as f64;
    let top = 22.0 + 15.0 * found.levels.len() as f64;
    let (bottom, plot) = (top + HEIGHT, WIDTH - LEFT - 20.0);
    let x = |value: f64| LEFT + (value - low) / (width * BINS as f64) * plot;
    let mut out = format!(
        "<h2>Scores</h2><figure><svg class=\"chart\" viewBox=\"0 0 {WIDTH} {}\" role=\"img\"><title>Histogram of the scores \
         with VaR and CVaR</title>",
        bottom + 42.0
    );
    for (i, count) in counts.iter().enumerate() {
        let height = *count as f64 / most * HEIGHT;
        let (left, wide) = (x(low + i as f64 * width), plot / BINS as f64 - 1.0);
        let _ = write!(
            out,
            "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{wide:.1}\" height=\"{height:.1}\" class=\"bar\"/>",
            bottom - height
        );
    }
    let _ = write!(
        out,
        "<line x1=\"{LEFT}\" y1=\"{bottom}\" x2=\"{}\" y2=\"{bottom}\" class=\"axis\"/>",
        LEFT + plot
    );
    for i in 0..=8 {
        let value = low + width * BINS as f64 * f64::from(i) / 8.0;
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" class=\"tick\">{value:.2}</text>",
            x(value),
            bottom + 16.0
        );
    }
    let _ = write!(
        out,
        "<text x=\"{}\" y=\"{}\" class=\"tick\">score: {}, in nats</text><text x=\"{}\" y=\"{}\" class=\"count\">{most}</text>",
        LEFT + plot / 2.0,
        bottom + 34.0,
        found.score,
        LEFT - 4.0,
        top + 10.0
    );
    for (i, level) in found.levels.iter().enumerate() {
        // Each level has a height of its own, so that close thresholds can be read.
        let (y, var, cvar) = (18.0 + 15.0 * i as f64, x(level.var), x(level.cvar));
        let (anchor, side) = if cvar > WIDTH - 200.0 { ("end", -8.0) } else { ("start", 8.0) };
        let from = if anchor == "end" { var.min(cvar) } else { var.max(cvar) };
        let _ = write!(
            out,
            "<line x1=\"{var:.1}\" y1=\"{y}\" x2=\"{var:.1}\" y2=\"{bottom}\" class=\"var\"/>\
             <line x1=\"{var:.1}\" y1=\"{y}\" x2=\"{cvar:.1}\" y2=\"{y}\" class=\"span\"/>\
             <path d=\"M{:.1} {} l10 0 l-5 9 z\"/>\
             <text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\" class=\"mark\">alpha {}: VaR {:.2}, CVaR {:.2}</text>",
            cvar - 5.0,
            y - 4.5,
            from + side,
            y + 4.0,
            level.alpha,
            level.var,
            level.cvar
        );
    }
    out + "</svg><figcaption>Dashed: value at risk, the threshold (mean over pools). Triangle: conditional value at risk, the \
           mean score of what is kept. Bars: tokens.</figcaption></figure>"
}

/// Shades by quantile of the scores, so that every shade is used however skewed they are.
struct Scale {
    bounds: Vec<f32>,
}

impl Scale {
    fn of(found: &Inspection) -> Self {
        let mut sorted: Vec<f32> = figures(found).map(|f| f.score).collect();
        sorted.sort_by(f32::total_cmp);
        let bounds = (1..SHADES.len()).map(|i| sorted[i * sorted.len() / SHADES.len()]).collect();
        Self { bounds }
    }

    fn shade(&self, score: f32) -> usize {
        self.bounds.partition_point(|bound| *bound <= score)
    }

    fn legend(&self, found: &Inspection) -> String {
        let mut out = String::from("<h2>Text</h2><p class=\"legend\">score ");
        for (i, _) in SHADES.iter().enumerate() {
            let name = match (i.checked_sub(1).map(|j| self.bounds[j]), self.bounds.get(i)) {
                (None, Some(high)) => format!("below {high:.2}"),
                (Some(low), Some(high)) => format!("{low:.2} to {high:.2}"),
                (low, None) => format!("{:.2} and above", low.unwrap_or(0.0)),
            };
            let _ = write!(out, "<span class=\"s{i}\">{name}</span> ");
        }
        let _ = write!(
            out,
            "&#160; <span class=\"k\">underlined</span>: kept at alpha {}</p>",
            found.mark
        );
        out
    }
}

fn shown(token: &Token) -> String {
    escape(&token.text).replace('\n', "<i>\u{21b5}</i>\n").replace('\t', "<i>\u{21e5}</i>")
}

fn text(found: &Inspection, scale: &Scale) -> String {
    let mut out = String::from("<div class=\"text\">");
    for token in &found.tokens {
        let Some(f) = token.figures else {
            let _ = write!(
                out,
                "<span title=\"id {}: the first token, not predicted\">{}</span>",
                token.id,
                shown(token)
            );
            continue;
        };
        let teacher = match (f.kl, f.teacher_nll) {
            (Some(kl), Some(nll)) => format!(", kl {kl:.3}, teacher's nll {nll:.3}"),
            _ => String::new(),
        };
        let _ = write!(
            out,
            "<span class=\"s{}{}\" title=\"id {}, score {:.3}, nll {:.3}, entropy {:.3}{teacher}\">{}</span>",
            scale.shade(f.score),
            if f.kept { " k" } else { "" },
            token.id,
            f.score,
            f.nll,
            f.entropy,
            shown(token)
        );
    }
    out + "</div>"
}

/// The ten tokens of largest and of smallest score, with what stands before them.
fn extremes(found: &Inspection) -> String {
    let mut order: Vec<usize> = (1..found.tokens.len()).collect();
    let score = |i: usize| found.tokens[i].figures.map_or(0.0, |f| f.score);
    order.sort_by(|a, b| score(*b).total_cmp(&score(*a)).then(a.cmp(b)));
    let list = |title: &str, places: &[usize]| {
        let mut out = format!("<div><h3>{title}</h3><table><tbody>");
        for &i in places {
            let before: String =
                found.tokens[i.saturating_sub(5)..i].iter().map(|t| t.text.as_str()).collect();
            let _ = write!(
                out,
                "<tr><td>{:.3}</td><td class=\"w\">{}<b>{}</b></td></tr>",
                score(i),
                escape(&before),
                escape(&found.tokens[i].text)
            );
        }
        out + "</tbody></table></div>"
    };
    let ten = order.len().min(10);
    let lowest: Vec<usize> = order.iter().rev().take(ten).copied().collect();
    format!(
        "<div class=\"two\">{}{}</div>",
        list("Highest scores", &order[..ten]),
        list("Lowest scores", &lowest)
    )
}

const STYLE: &str = "\
:root{color-scheme:light}\
body{font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;color:#111;background:#fff;\
max-width:960px;margin:0 auto;padding:24px 20px 60px}\
h1{font-size:24px;margin:0 0 4px}h2{font-size:19px;margin:28px 0 6px;border-bottom:1px solid #bbb}h3{font-size:15px;margin:18px 0 4px}\
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums}\
th,td{padding:3px 12px 3px 0;text-align:left;border-bottom:1px solid #ddd}\
figure{margin:8px 0}figcaption{font-size:13px;color:#333}.chart{width:100%;height:auto;display:block}\
.bar{fill:#9ecae1;stroke:#4292c6;stroke-width:.5}.axis{stroke:#333}.var{stroke:#D55E00;stroke-width:1.3;stroke-dasharray:5 3}\
.span{stroke:#D55E00;stroke-width:1}.mark,.tick,.count{font:12px system-ui,sans-serif;fill:#111}.tick{text-anchor:middle}\
.count{text-anchor:end}\
.text{white-space:pre-wrap;font-size:16px;line-height:1.9;overflow-wrap:anywhere}.text i{color:#666;font-style:normal}\
.legend span{padding:1px 6px}.legend{font-size:13px}\
.k{text-decoration:underline;text-decoration-thickness:2px;text-underline-offset:3px}\
.s0{background:#ffffff}.s1{background:#deebf7}.s2{background:#c6dbef}.s3{background:#9ecae1}.s4{background:#6baed6}\
.s5{background:#4292c6}.two{display:flex;flex-wrap:wrap;gap:40px}.w{white-space:pre-wrap}\
@media print{body{max-width:none;padding:0;font-size:10pt}.text{font-size:10.5pt}\
span{print-color-adjust:exact;-webkit-print-color-adjust:exact}h2{break-after:avoid}figure,tr{break-inside:avoid}}";

#[cfg(test)]
mod tests {
    use super::super::tests::found;
    use super::*;
    use crate::config::Score;

    #[test]
    fn the_page_shows_every_token_once_and_every_level() {
        let found = found(Score::Kl, true);
        let page = page(&found);
        let spans = page.matches(" title=\"id ").count();
        assert_eq!(spans, found.tokens.len());
        let underlined = page.matches(" k\" title=").count();
        assert_eq!(underlined, figures(&found).filter(|f| f.kept).count());
        for level in &found.levels {
            assert!(page.contains(&format!("alpha {}: VaR {:.2}", level.alpha, level.var)));
        }
        assert!(page.contains("&lt;") && !page.contains("<four>"), "text is escaped");
        assert!(page.contains("KL(teacher || model)"));
        for (i, shade) in SHADES.iter().enumerate() {
            assert!(STYLE.contains(&format!(".s{i}{{background:{shade}}}")));
        }
    }

    #[test]
    fn shades_divide_the_tokens_evenly() {
        let found = found(Score::Loss, false);
        let scale = Scale::of(&found);
        let mut counts = [0usize; SHADES.len()];
        figures(&found).for_each(|f| counts[scale.shade(f.score)] += 1);
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(most - least <= 1, "{counts:?}");
    }
}
