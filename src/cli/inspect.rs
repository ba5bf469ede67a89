//! `inspect`: what selection makes of a text.

use super::number::{finite, whole};
use super::{ModelArgs, Printer};
use crate::config::{Pool, Score, Tail};
use crate::error::{Error, ErrorKind, Result};
use crate::files::{Input, check_file_like, check_no_pointer, unread, write_atomic};
use crate::inspect::{Inspection, Options, Token, histogram, inspect, page};
use crate::report::page::BEGINS;
use crate::report::table::broken;
use crate::report::text::{self, MARKED, PLAIN_WIDTH, Screen};
use crate::teacher::Teacher;
use std::io::Read;
use std::path::PathBuf;
use unicode_width::UnicodeWidthStr;

/// Show what selection makes of a text: scores, thresholds, kept tokens
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct InspectArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Text to score, UTF-8
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// A second model whose opinion the score may ask for; shares the first one's vocabulary
    #[arg(long, value_name = "MODEL")]
    pub teacher: Option<String>,
    /// Write the page here
    #[arg(long, value_name = "PAGE.html")]
    pub out: Option<PathBuf>,
    /// Show the text on the terminal; what happens without --out, too
    #[arg(long)]
    pub plain: bool,
    /// What ranks the tokens; without it, kl with a teacher, else entropy
    #[arg(long, value_name = "SCORE")]
    pub score: Option<Score>,
    /// Confidence levels
    #[arg(long, value_name = "ALPHA,...", value_delimiter = ',', value_parser = finite, default_values_t = [0.1, 0.3, 0.5, 0.8])]
    pub alpha: Vec<f64>,
    /// The level whose kept tokens are marked; without it, 0.5 if that is one of --alpha, else the
    /// first of these
    #[arg(long, value_name = "ALPHA", value_parser = finite)]
    pub mark: Option<f64>,
    /// Who shares a threshold: sequence, a window's tokens; micro-batch, all of them
    #[arg(long, default_value = "sequence", value_name = "POOL")]
    pub pool: Pool,
    /// Which end is kept: high or low
    #[arg(long, default_value = "high", value_name = "TAIL")]
    pub tail: Tail,
    /// Temperature of the divergences
    #[arg(long, value_parser = finite, default_value_t = 1.0, value_name = "TAU")]
    pub temperature: f64,
    /// Tokens per window; without it, all positions of the model
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1..=u32::MAX.into()))]
    pub context: Option<u32>,
    /// Tokens of the text to look at
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = whole::<u32>(2..=200_000))]
    pub max_tokens: u32,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd inspect runs/first --text page.txt --out page.html
  eslm-kd inspect runs/second --teacher runs/first --text page.txt --score entropy-kl --out page.html
  eslm-kd inspect gpt2 --text page.txt --plain --alpha 0.2 --mark 0.2";

/// Longest text: a long novel. It is tokenised whole, and a text without a break takes a hundred
/// times its bytes.
const MOST_TEXT_BYTES: u64 = 4 << 20;

/// Runs the verb.
pub fn run(args: &InspectArgs, ui: &Printer) -> Result<()> {
    let options = options(args)?;
    let file = &args.text;
    if let Some(out) = &args.out {
        check_file_like(out, "a page", BEGINS, &[file])?;
    }
    let (mut text, input) = (Vec::new(), Input::open(file)?);
    let read = input.take(MOST_TEXT_BYTES + 1).read_to_end(&mut text);
    read.map_err(|e| unread(file, e))?;
    check_no_pointer(file, &text)?;
    if text.len() as u64 > MOST_TEXT_BYTES {
        return Err(Error::data(format!(
            "{}: longer than {}, of which only the first tokens would be shown; give a part of it",
            file.display(),
            text::bytes(MOST_TEXT_BYTES)
        )));
    }
    let text = String::from_utf8(text).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::data(format!(
            "{}: expected UTF-8 text, found something else at byte {at}",
            file.display()
        ))
    })?;
    let model = args.model.open(ui)?;
    let teacher = match &args.teacher {
        Some(name) => {
            Some(Teacher::new(args.model.open_also(name, ui)?.model, &model.model.config)?)
        }
        None => None,
    };
    let positions = teacher.as_ref().map_or(usize::MAX, |t| t.model().config.n_positions);
    let context =
        args.context.map_or(model.model.config.n_positions.min(positions), |c| c as usize);
    let options = Options { context, ..options };
    let names = (args.model.model.as_str(), args.teacher.as_deref());
    let found = inspect(&model.model, teacher.as_ref(), model.tokenizer()?, &text, names, &options)
        .map_err(|e| match e.kind() {
            ErrorKind::Data => e.context(file.display()),
            _ => e,
        })?;
    if let Some(out) = &args.out {
        let html = page(&found);
        write_atomic(out, |w| {
            w.write_all(html.as_bytes()).map_err(|e| Error::io("write", out, e))
        })?;
    }
    ui.result(&found, |screen| {
        let plain = args.plain || args.out.is_none();
        let mut human = if plain {
            marked(&found, screen) + "\n\n" + &bars(&found, screen) + "\n"
        } else {
            String::new()
        };
        human += &levels(&found, screen);
        if let Some(out) = &args.out {
            human += &format!("\npage: {}", out.display());
        }
        human
    })
}

fn options(args: &InspectArgs) -> Result<Options> {
    const USUAL: f64 = 0.5;
    let mut alphas = args.alpha.clone();
    let first = alphas.first().copied().unwrap_or(USUAL);
    let mark = args.mark.unwrap_or(if alphas.contains(&USUAL) { USUAL } else { first });
    if !alphas.contains(&mark) {
        alphas.push(mark);
    }
    if let Some(alpha) = alphas.iter().find(|alpha| !(0.0..1.0).contains(*alpha)) {
        return Err(Error::usage(format!(
            "--alpha and --mark: expected numbers in [0, 1), found {alpha}"
        )));
    }
    alphas.sort_by(f64::total_cmp);
    alphas.dedup();
    if args.temperature < 1e-3 {
        return Err(Error::usage(format!(
            "--temperature: expected at least 0.001, found {}",
            args.temperature
        )));
    }
    Ok(Options {
        score: args.score.unwrap_or(if args.teacher.is_some() {
            Score::Kl
        } else {
            Score::Entropy
        }),
        temperature: args.temperature as f32,
        alphas,
        mark,
        pool: args.pool,
        tail: args.tail,
        context: 0, // the models decide
        max_tokens: args.max_tokens as usize,
    })
}

/// The text with its kept tokens: bold where a terminal can, else in brackets.
fn marked(found: &Inspection, screen: &Screen) -> String {
    let ([on, off], terminal) = (MARKED, screen.width.is_some());
    let (open, close) = if screen.colours { (on, off) } else { ('[', ']') };
    let mut out = String::new();
    // Characters that are spread over tokens stay whole, and are kept if one of these is.
    let is_later = |t: &Token| t.joined.as_ref().is_some_and(|j| j.at > 0);
    for tokens in found.tokens.chunk_by(|_, next| is_later(next)) {
        let whole = tokens[0].shown();
        let shown = if terminal { text::visible(whole) } else { whole.into() };
        match tokens.iter().any(|t| t.figures.is_some_and(|f| f.kept)) {
            true => out += &format!("{open}{shown}{close}"),
            false => out += &shown,
        }
    }
    if terminal {
        return out; // which the printer folds
    }
    // The brackets make lines longer than the text has them.
    let lines = out.split('\n').map(|line| match line.width() > PLAIN_WIDTH {
        true => broken(line, PLAIN_WIDTH).join("\n"),
        false => line.to_string(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Columns in front of a bar.
const BEFORE_BAR: usize = 16;

/// A histogram of the scores, one bin a line, with the levels whose VaR and CVaR lie there.
fn bars(found: &Inspection, screen: &Screen) -> String {
    let scores: Vec<f32> = found.tokens.iter().filter_map(|t| t.figures).map(|f| f.score).collect();
    let (low, width, counts) = histogram(&scores, 16);
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    // Half of what a line has is for the levels.
    let room = screen.width.unwrap_or(PLAIN_WIDTH) - BEFORE_BAR;
    let longest = 40.min(room / 2);
    let mut out = format!("{} scores, from each value on:\n", found.score);
    for (i, count) in counts.iter().enumerate() {
        let from = low + i as f64 * width;
        let inside = |value: f64| (((value - low) / width) as usize).min(counts.len() - 1) == i;
        let mut marks: Vec<String> = Vec::new();
        for level in &found.levels {
            for (name, value) in [("VaR", level.var), ("CVaR", level.cvar)] {
                if inside(value) {
                    marks.push(format!("{name}({})", level.alpha));
                }
            }
        }
        let bar = "#".repeat((count * longest).div_ceil(most));
        let marks = broken(&marks.join(" "), room - bar.len() - 2)
            .join(&format!("\n{}", " ".repeat(BEFORE_BAR + bar.len() + 2)));
        let line = format!("{from:>8.2} {:>6} {bar}  {marks}", text::count(*count as u64));
        out += line.trim_end();
        out.push('\n');
    }
    out
}

fn levels(found: &Inspection, screen: &Screen) -> String {
    let mut table =
        text::Table::new(["alpha", "VaR", "CVaR", "kept", "share", "CE of kept", "CE of dropped"]);
    let n = (found.tokens.len() - 1) as f64;
    for level in &found.levels {
        table.row([
            level.alpha.to_string(),
            format!("{:.3}", level.var),
            format!("{:.3}", level.cvar),
            text::count(level.kept as u64),
            text::percent(level.kept as f64 / n),
            format!("{:.3}", level.kept_ce),
            level.dropped_ce.map_or_else(|| "-".into(), |ce| format!("{ce:.3}")),
        ]);
    }
    let cut = if found.tokens.len() < found.tokens_of_text {
        let [shown, all] =
            [found.tokens.len(), found.tokens_of_text].map(|n| text::count(n as u64));
        format!("the first {shown} of {all} tokens; --max-tokens shows more\n")
    } else {
        String::new()
    };
    format!(
        "{}\nVaR is the threshold, a mean over pools: of each pool the lowest kept score\n{cut}kept tokens are marked at alpha {}",
        table.on(screen),
        found.mark
    )
}
