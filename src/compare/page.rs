//! `report.html`: one page that needs nothing else, for the screen and for paper.

use super::REPORT_HTML;
use super::budget::Budget;
use super::figures::{curves, decile_chart, decile_differences, deciles, groups};
use super::stats::{Difference, Spread};
use super::summary::{ArmResult, CURVES_CSV, REPORT_CSV, Summary, flat};
use super::svg::{interval, strip};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::report::page::{escape, page as html};
use crate::report::text::{count, flops, seconds};
use std::fmt::Write;

/// Below this a p after Holm's correction is called a difference.
const LEVEL: f64 = 0.05;

/// Writes the page.
pub fn write(summary: &Summary) -> Result<()> {
    let path = summary.out.join(REPORT_HTML);
    let text = page(summary);
    write_atomic(&path, |w| w.write_all(text.as_bytes()).map_err(|e| Error::io("write", &path, e)))
}

/// The whole page. Well-formed XML, too, so that it can be checked as such.
pub fn page(s: &Summary) -> String {
    let mut body = head(s);
    body += &findings(s);
    body += &arms_table(s);
    body += &main_table(s);
    body += &differences(s);
    body += &charts(s);
    body += &other_texts(s);
    body += &by_frequency(s);
    body += &how(s);
    html(&title(s), STYLE, &body)
}

fn title(s: &Summary) -> String {
    let name =
        s.out.file_name().map_or_else(|| "comparison".into(), |n| n.to_string_lossy().into_owned());
    format!("Comparison {name}")
}

fn plural(n: usize, one: &str) -> String {
    format!("{n} {one}{}", if n == 1 { "" } else { "s" })
}

fn head(s: &Summary) -> String {
    let d = &s.state.data;
    let budget = match s.state.budget {
        Budget::Tokens => "steps as the run files say",
        Budget::Flops => "steps set to the baseline's FLOPs",
        Budget::Seconds => "steps set to the baseline's seconds",
    };
    let seeds: Vec<String> = s.state.seeds.iter().map(ToString::to_string).collect();
    let mut out = format!(
        "<h1>{}</h1><p class=\"sub\">{}, {} ({}); {budget}. Data: {} ({} training and {} validation tokens, vocabulary \
         of {}). Baseline: <b>{}</b>.</p>",
        escape(&title(s)),
        plural(s.arms.len(), "arm"),
        plural(seeds.len(), "seed"),
        seeds.join(", "),
        escape(&d.dir),
        count(d.train_tokens),
        count(d.valid_tokens),
        count(u64::from(d.vocabulary)),
        escape(&s.state.baseline),
    );
    if !s.missing.is_empty() {
        let runs: Vec<String> =
            s.missing.iter().map(|(label, seed)| format!("{label} seed {seed}")).collect();
        let _ = write!(
            out,
            "<p class=\"warn\">{} not finished and not on this page: {}.</p>",
            if runs.len() == 1 {
                "One run is".to_string()
            } else {
                format!("{} runs are", runs.len())
            },
            escape(&runs.join(", "))
        );
    }
    out
}

/// What can be said, in sentences.
fn findings(s: &Summary) -> String {
    let mut out = String::from("<ul class=\"findings\">");
    let best = s
        .arms
        .iter()
        .filter_map(|a| Some((a, a.ce()?)))
        .min_by(|a, b| a.1.mean.total_cmp(&b.1.mean));
    if let Some((arm, ce)) = best {
        let _ = write!(
            out,
            "<li>Lowest mean validation cross-entropy: <b>{}</b>, {:.4} nats per token (perplexity {:.2}).</li>",
            escape(&arm.arm.label),
            ce.mean,
            ce.mean.exp()
        );
    }
    if s.tests == 0 {
        out += "<li>No difference could be tested: that takes at least two seeds of both arms. What one seed says may \
                be chance.</li>";
    } else {
        sentence(s, &mut out, &format!("{} (the baseline)", s.state.baseline), |a| a.to_baseline);
        if s.arms.iter().any(|a| a.to_control.is_some()) {
            sentence(s, &mut out, "its random control at equal keep", |a| a.to_control);
        }
    }
    out + "</ul>"
}

fn sentence(
    s: &Summary,
    out: &mut String,
    other: &str,
    of: impl Fn(&ArmResult) -> Option<Difference>,
) {
    let (mut lower, mut higher, mut open) = (Vec::new(), Vec::new(), Vec::new());
    for arm in &s.arms {
        let Some(difference) = of(arm) else { continue };
        let list = match difference.test {
            Some(t) if t.p_holm < LEVEL && difference.mean < 0.0 => &mut lower,
            Some(t) if t.p_holm < LEVEL => &mut higher,
            _ => &mut open,
        };
        list.push(escape(&arm.arm.label));
    }
    let mut parts = Vec::new();
    for (what, list) in [("lower", &lower), ("higher", &higher), ("no difference shown", &open)] {
        if !list.is_empty() {
            parts.push(format!("{what}: {}", list.join(", ")));
        }
    }
    let _ = write!(
        out,
        "<li>Against {}, at 5 % after correction: {}.</li>",
        escape(other),
        parts.join("; ")
    );
}

fn arms_table(s: &Summary) -> String {
    let mut out = String::from("<h2>What was compared</h2>");
    if s.differing.is_empty() {
        out += "<p>The arms do not differ in any key.</p>";
    }
    out += "<div class=\"wide\"><table><thead><tr><th>arm</th>";
    for key in &s.differing {
        // A long name may break after its section.
        let _ = write!(out, "<th>{}</th>", escape(key).replace('.', ".<wbr/>"));
    }
    out += "<th class=\"r\">student</th></tr></thead><tbody>";
    for arm in &s.arms {
        let _ = write!(out, "<tr><th>{}</th>", escape(&arm.arm.label));
        for value in arm.values(&s.differing) {
            let shown = if value.is_empty() {
                "<span class=\"none\">–</span>".to_string()
            } else {
                escape(&value)
            };
            let _ = write!(out, "<td>{shown}</td>");
        }
        let _ = write!(out, "<td class=\"r\">{}</td></tr>", millions(arm.state.parameters));
    }
    out += "</tbody></table></div><details><summary>Settings that the arms share, as far as they have them</summary><p class=\"keys\">";
    // Of the arms that have a key at all: one that selects nothing has no score.
    let mut common = std::collections::BTreeMap::new();
    for arm in &s.arms {
        common.extend(
            flat(&arm.arm)
                .into_iter()
                .filter(|(k, _)| k != "seed" && !s.differing.contains(&k.as_str())),
        );
    }
    let common: Vec<String> =
        common.iter().map(|(k, v)| format!("<span>{} = {}</span>", escape(k), escape(v))).collect();
    out += &common.join(" ");
    out + "</p></details>"
}

/// Parameters of a model.
fn millions(n: u64) -> String {
    if n >= 1_000_000 { format!("{:.2}M", n as f64 / 1e6) } else { format!("{}k", n / 1000) }
}

/// A row's arm, marked if it is the baseline.
fn name(s: &Summary, i: usize) -> String {
    let label = escape(&s.arms[i].arm.label);
    if s.baseline == Some(i) { format!("{label} <small>baseline</small>") } else { label }
}

fn spread_cell(spread: Option<Spread>, best: bool) -> String {
    let Some(Spread { mean, sd, min, max, .. }) = spread else {
        return "<td class=\"r none\">–</td>".into();
    };
    let mean = if best { format!("<b>{mean:.4}</b>") } else { format!("{mean:.4}") };
    match sd {
        Some(sd) => {
            format!("<td class=\"r\">{mean} ± {sd:.4}<br/><small>{min:.4} to {max:.4}</small></td>")
        }
        None => format!("<td class=\"r\">{mean}</td>"),
    }
}

fn main_table(s: &Summary) -> String {
    let all: Vec<f64> =
        s.arms.iter().flat_map(|a| a.runs.iter().map(|r| r.evaluation.ce)).collect();
    let scale = (
        all.iter().copied().fold(f64::INFINITY, f64::min),
        all.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    );
    let mark = s.baseline.and_then(|b| s.arms[b].ce()).map(|c| c.mean);
    let best = s.arms.iter().filter_map(|a| a.ce()).map(|c| c.mean).fold(f64::INFINITY, f64::min);
    let base = escape(&s.state.baseline);
    let mut out = format!(
        "<h2>Results</h2><div class=\"wide\"><table><thead><tr><th>arm</th><th class=\"r\">seeds</th>\
         <th class=\"r\">steps</th><th class=\"r\">tokens</th><th class=\"r\">FLOPs</th><th class=\"r\">time</th>\
         <th class=\"r\">validation CE<br/><small>mean ± sd, range</small></th>\
         <th>every seed<br/><small>{:.3} to {:.3}</small></th>\
         <th class=\"r\">FLOPs to<br/>{base}'s CE</th><th class=\"r\">time to<br/>{base}'s CE</th></tr></thead><tbody>",
        scale.0, scale.1
    );
    for (i, arm) in s.arms.iter().enumerate() {
        let ce = arm.ce();
        let values: Vec<f64> = arm.runs.iter().map(|r| r.evaluation.ce).collect();
        let total = |f: fn(&super::runs::Metrics) -> f64| arm.spread(|r| Some(f(&r.metrics)));
        let mean = |spread: Option<Spread>| spread.map_or(0.0, |s| s.mean);
        let time = total(|m| m.seconds);
        let range = time.filter(|t| t.n > 1).map_or_else(String::new, |t| {
            format!("<br/><small>{} to {}</small>", seconds(t.min), seconds(t.max))
        });
        let (way, when) = match arm.reaches {
            Some(p) => (flops(p.flops as u128), seconds(p.seconds)),
            None => ("not reached".to_string(), "not reached".to_string()),
        };
        let class = if arm.reaches.is_some() { "r" } else { "r none" };
        let _ = write!(
            out,
            "<tr><th>{}</th><td class=\"r\">{}</td><td class=\"r\">{}</td><td class=\"r\">{}</td>\
             <td class=\"r\">{}</td><td class=\"r\">{}{range}</td>{}<td>{}</td>\
             <td class=\"{class}\">{way}</td><td class=\"{class}\">{when}</td></tr>",
            name(s, i),
            arm.runs.len(),
            count(arm.runs[0].steps),
            count(mean(total(|m| m.tokens)) as u64),
            flops(mean(total(|m| m.flops)) as u128),
            seconds(mean(time)),
            spread_cell(ce, ce.is_some_and(|c| c.mean <= best)),
            strip(&values, mean(ce), scale, mark),
        );
    }
    let _ = write!(
        out,
        "</tbody></table></div><p class=\"note\">CE is mean cross-entropy in nats over all {} validation predictions, \
         whatever was selected in training. Every seed: one tick per run, the dot is the mean, the dashed line {base}'s \
         mean. FLOPs are those executed; time is training alone, without validation. The last two columns: where the \
         arm's mean validation curve first comes down to the last point of {base}'s, on a straight line between \
         validations.</p>",
        count(s.arms[0].runs[0].evaluation.tokens),
    );
    out
}

fn differences(s: &Summary) -> String {
    let of = |a: &ArmResult| [a.to_baseline, a.to_control];
    let all: Vec<Difference> = s.arms.iter().flat_map(of).flatten().collect();
    if all.is_empty() {
        return String::new();
    }
    // The scale shows every mean; an interval that leaves it ends in an arrow.
    let reach = all.iter().map(|d| d.mean.abs()).fold(0.0, f64::max).max(1e-4) * 1.6;
    let scale = (-reach, reach);
    let mut out = String::from("<h2>Differences over equal seeds</h2>");
    let base = format!("to {}", s.state.baseline);
    let with_control = all.len() > s.arms.iter().filter(|a| a.to_baseline.is_some()).count();
    let mut sections = vec![(base, false)];
    if with_control {
        sections.push(("to random at equal keep".to_string(), true));
    }
    for (title, control) in sections {
        let _ = write!(
            out,
            "<div class=\"wide\"><table><thead><tr><th>{}</th>{}<th class=\"r\">difference of CE</th>\
             <th class=\"r\">95 % interval</th><th>−{reach:.3} to +{reach:.3}</th><th class=\"r\">seeds</th>\
             <th class=\"r\">p</th><th class=\"r\">p (Holm)</th></tr></thead><tbody>",
            escape(&title),
            if control { "<th>control</th>" } else { "" }
        );
        for arm in &s.arms {
            let Some(d) = (if control { arm.to_control } else { arm.to_baseline }) else {
                continue;
            };
            let other = arm
                .control
                .filter(|_| control)
                .map(|c| format!("<td>{}</td>", escape(&s.arms[c].arm.label)));
            let (range, p, p_holm) = match d.test {
                Some(t) => (
                    format!("{} to {}", signed(t.low), signed(t.high)),
                    probability(t.p),
                    probability(t.p_holm),
                ),
                None => ("–".into(), "–".into(), "–".into()),
            };
            let sure = d.test.is_some_and(|t| t.p_holm < LEVEL);
            let _ = write!(
                out,
                "<tr><th>{}</th>{}<td class=\"r\">{}</td><td class=\"r\">{range}</td><td>{}</td><td class=\"r\">{}</td>\
                 <td class=\"r\">{p}</td><td class=\"r\">{}</td></tr>",
                escape(&arm.arm.label),
                other.unwrap_or_default(),
                signed(d.mean),
                interval(d.mean, d.test.map(|t| (t.low, t.high)), scale),
                d.n,
                if sure { format!("<b>{p_holm}</b>") } else { p_holm },
            );
        }
        out += "</tbody></table></div>";
    }
    let tests = match s.tests {
        0 => "No test: a pair of single runs has no spread to test against.".to_string(),
        n => format!(
            "Paired two-sided t-tests on the full validation CE of runs with the same seed, {}. p (Holm) corrects for \
             their number; bold is below 0.05. A dash: fewer than two seeds, or differences without any spread. With few \
             seeds the intervals are wide, and a difference that is not shown is not shown to be absent.",
            plural(n, "test")
        ),
    };
    let _ = write!(out, "<p class=\"note\">Negative is better. {tests}</p>");
    out
}

fn signed(x: f64) -> String {
    format!("{x:+.4}").replace('-', "−")
}

fn probability(p: f64) -> String {
    if p < 0.001 { "&lt; 0.001".into() } else { format!("{p:.3}") }
}

fn charts(s: &Summary) -> String {
    let groups = groups(s);
    let mut out = String::from("<h2>Validation during training</h2>");
    for (g, group) in groups.iter().enumerate() {
        if groups.len() > 1 {
            let _ = write!(out, "<h3>{}</h3>", group_title(s, g, groups.len(), group));
        }
        for (i, chart) in curves(s, group).iter().enumerate() {
            let _ = write!(out, "<figure>{}</figure>", chart.svg(&format!("c{g}-{i}")));
        }
    }
    let rows =
        s.arms.iter().find_map(|a| (a.arm.plan.eval.rows > 0).then_some(a.arm.plan.eval.rows));
    let part = rows.map_or_else(String::new, |n| {
        format!(
            " Validations during training read the first {} sequences (eval.rows), not all.",
            count(n as u64)
        )
    });
    out += &format!(
        "<p class=\"note\">Lines are means over the seeds, bands go from the lowest to the highest. The fall of the first \
         fifth is cut off so that differences show.{part}</p>"
    );
    out
}

fn group_title(s: &Summary, g: usize, of: usize, group: &[usize]) -> String {
    let others = group.iter().filter(|i| Some(**i) != s.baseline).count();
    let beside = if s.baseline.is_some() {
        format!(", beside {}", escape(&s.state.baseline))
    } else {
        String::new()
    };
    format!("Part {} of {of}: {}{beside}", g + 1, plural(others, "arm"))
}

fn other_texts(s: &Summary) -> String {
    if s.state.also.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<h2>Other text (out of domain)</h2><div class=\"wide\"><table><thead><tr><th>arm</th>",
    );
    for text in &s.state.also {
        let _ = write!(out, "<th class=\"r\">{}</th><th class=\"r\">difference</th>", escape(text));
    }
    out += "</tr></thead><tbody>";
    let mean =
        |arm: &ArmResult, text: &String| arm.spread(|r| r.evaluation.other(text)).map(|s| s.mean);
    for (i, arm) in s.arms.iter().enumerate() {
        let _ = write!(out, "<tr><th>{}</th>", name(s, i));
        for text in &s.state.also {
            let spread = arm.spread(|r| r.evaluation.other(text));
            let best = s.arms.iter().filter_map(|a| mean(a, text)).fold(f64::INFINITY, f64::min);
            out += &spread_cell(spread, spread.is_some_and(|s| s.mean <= best));
            let base = s
                .baseline
                .filter(|b| *b != i)
                .and_then(|b| other_difference(arm, &s.arms[b], text));
            let _ = write!(out, "<td class=\"r\">{}</td>", base.map_or_else(String::new, signed));
        }
        out += "</tr>";
    }
    let _ = write!(
        out,
        "</tbody></table></div><p class=\"note\">Cross-entropy in nats per token of text that is not in the data folder, \
         in the data's tokenizer; mean ± sd and range over the seeds. Difference: to {}, mean over equal seeds, not \
         tested.</p>",
        escape(&s.state.baseline)
    );
    out
}

/// Mean difference over the seeds that both have.
fn other_difference(arm: &ArmResult, base: &ArmResult, text: &str) -> Option<f64> {
    let pairs = arm.runs.iter().filter_map(|r| {
        let twin = base.runs.iter().find(|b| b.seed == r.seed)?;
        Some(r.evaluation.other(text)? - twin.evaluation.other(text)?)
    });
    Some(Spread::of(&pairs.collect::<Vec<_>>())?.mean)
}

fn by_frequency(s: &Summary) -> String {
    let ranges = &s.arms[0].runs[0].evaluation.deciles;
    let mut out = String::from(
        "<h2>By token frequency</h2><div class=\"wide\"><table class=\"heat\"><thead><tr><th>decile</th>",
    );
    for g in 1..=ranges.len() {
        let _ = write!(out, "<th class=\"r\">{g}</th>");
    }
    out += "</tr><tr><th><small>occurrences in training</small></th>";
    for d in ranges {
        let _ = write!(
            out,
            "<th class=\"r\"><small>{}–<br/>{}</small></th>",
            count(d.least),
            count(d.most)
        );
    }
    out += "</tr></thead><tbody>";
    let base = s.baseline.map(|b| &s.arms[b]);
    let differences: Vec<Vec<f64>> =
        s.arms.iter().map(|a| base.map_or_else(Vec::new, |b| decile_differences(a, b))).collect();
    let most = differences.iter().flatten().map(|x| x.abs()).fold(1e-9, f64::max);
    for (i, arm) in s.arms.iter().enumerate() {
        let _ = write!(out, "<tr><th>{}</th>", name(s, i));
        match base.filter(|_| s.baseline != Some(i)) {
            Some(_) => {
                for x in &differences[i] {
                    let _ = write!(
                        out,
                        "<td class=\"r\" style=\"background:{}\">{}</td>",
                        heat(x / most),
                        short(*x)
                    );
                }
            }
            None => {
                for x in deciles(arm) {
                    let _ = write!(out, "<td class=\"r\">{x:.3}</td>");
                }
            }
        }
        out += "</tr>";
    }
    out += "</tbody></table></div>";
    for (g, group) in groups(s).iter().enumerate() {
        if let Some(chart) = decile_chart(s, group) {
            let _ = write!(out, "<figure>{}</figure>", chart.svg(&format!("d{g}")));
        }
    }
    let what = match s.baseline {
        Some(_) => format!(
            "The row of {} is its cross-entropy; the others are differences to it, blue is lower (better), orange higher.",
            escape(&s.state.baseline)
        ),
        None => "Cross-entropy in nats per token.".to_string(),
    };
    let _ = write!(
        out,
        "<p class=\"note\">Validation tokens sorted by how often their type occurs in the training tokens, cut into ten \
         groups of equal size. {what} Means over the seeds.</p>"
    );
    out
}

fn short(x: f64) -> String {
    format!("{x:+.3}").replace('-', "−")
}

/// White at 0; towards blue below, towards orange above. Light enough for black text.
fn heat(x: f64) -> String {
    let full = if x < 0.0 { (140.0, 190.0, 235.0) } else { (250.0, 185.0, 110.0) };
    let mix = |c: f64| (255.0 + (c - 255.0) * x.abs().min(1.0)).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mix(full.0), mix(full.1), mix(full.2))
}

fn how(s: &Summary) -> String {
    let budget = match s.state.budget {
        Budget::Tokens => String::from("Every arm trained for the steps of its run file."),
        Budget::Flops => format!(
            "Steps were set so that the forecast FLOPs of every arm are nearest to those of {}; warm-up, burn-in, ramp and \
             the steps between validations keep their share of the run. Where alpha moves by itself, the forecast counts \
             it at its target.",
            escape(&s.state.baseline)
        ),
        Budget::Seconds => format!(
            "Steps were set so that every arm takes the seconds that {} took with the first seed, by a few measured steps \
             of each; warm-up, burn-in, ramp and the steps between validations keep their share of the run.",
            escape(&s.state.baseline)
        ),
    };
    format!(
        "<h2>How</h2><p class=\"note\">{budget} Runs with the same seed share first weights (where the student is the \
         same) and order of the data. Random control: the arm whose select.score (and select.probe_score, with an early exit) is \"random\", all else equal. sd is the \
         standard deviation over seeds (n − 1). One row per run is in {REPORT_CSV}, every validation in {CURVES_CSV}.</p>"
    )
}

const STYLE: &str = "\
:root{color-scheme:light}\
body{font:15px/1.45 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;color:#111;background:#fff;\
max-width:1100px;margin:0 auto;padding:24px 20px 60px}\
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:34px 0 8px;border-bottom:1px solid #bbb;padding-bottom:3px}\
h3{font-size:15px;margin:18px 0 4px}p{margin:6px 0}.sub,.note{color:#333}.note{font-size:13px;max-width:900px}\
.warn{border-left:4px solid #D55E00;padding:4px 10px;background:#fff4ea}\
.findings{padding:10px 10px 10px 28px;background:#f4f6f8;margin:14px 0}.findings li{margin:3px 0}\
.wide{overflow-x:auto;margin:8px 0}\
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums}\
th,td{padding:4px 10px;text-align:left;border-bottom:1px solid #ddd;vertical-align:middle}\
thead th{border-bottom:1.5px solid #555;vertical-align:bottom;font-weight:600}\
tbody th{font-weight:600}td.r,th.r{text-align:right;white-space:nowrap}small{color:#444;font-weight:400;font-size:11.5px}\
.none{color:#666}.heat td,.heat th.r{padding:4px 7px}\
details{margin:8px 0}summary{cursor:pointer}.keys{font:12.5px/1.7 ui-monospace,'DejaVu Sans Mono',monospace}\
.keys span{display:inline-block;margin-right:16px}\
figure{margin:10px 0}.chart{width:100%;max-width:1000px;height:auto;display:block}\
.strip{width:150px;height:20px;display:block}.strip circle{fill:#0072B2}.strip .value{stroke:#0072B2;stroke-width:1.6;fill:none}\
.strip .mark{stroke:#000;stroke-width:1;stroke-dasharray:2 2}\
.grid{stroke:#ddd;fill:none}.axis{stroke:#333;fill:none}.lead{stroke:#aaa;fill:none;stroke-width:.8}\
.tick,.name,.label{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#111}\
.label{font-size:12.5px}\
@media print{body{max-width:none;padding:0;font-size:10pt}table{font-size:8.5pt}.note{font-size:8.5pt}\
.wide{overflow:visible}h2{break-after:avoid}figure,tr{break-inside:avoid}th,td{padding:2px 6px}\
.heat td,.findings,.warn{print-color-adjust:exact;-webkit-print-color-adjust:exact}}";
