//! The page of built-in run files: their values, and what the comments at their heads say.

use super::grouped;
use crate::config::{BackwardMode, EMBEDDED, Origin, Overrides, Plan, RunFile, load};
use crate::error::{Error, Result};

/// A file's comments up to its first key: what it is for, commands, and lines of facts.
#[derive(Debug, Default)]
struct Head {
    about: String,
    commands: Vec<String>,
    facts: Vec<(String, String)>,
    after: String,
}

impl Head {
    fn read(text: &str) -> Self {
        let mut head = Self::default();
        let comments = text.lines().map_while(|line| line.strip_prefix('#'));
        for line in comments {
            let words = line.trim();
            if let Some(fact) = line.strip_prefix("   ") {
                match fact.split_once("  ") {
                    Some((name, fact)) if !fact.starts_with("eslm-kd") && !name.is_empty() => {
                        let fact = fact.split_whitespace().collect::<Vec<_>>().join(" ");
                        head.facts.push((name.to_string(), fact));
                    }
                    _ => head.commands.push(fact.trim().to_string()),
                }
                continue;
            }
            let part = if head.facts.is_empty() { &mut head.about } else { &mut head.after };
            if !words.is_empty() {
                *part += if part.is_empty() { "" } else { " " };
                *part += words;
            }
        }
        head
    }

    fn fact(&self, name: &str) -> Option<&str> {
        self.facts.iter().find(|(n, _)| n == name).map(|(_, fact)| fact.as_str())
    }
}

pub(super) fn page() -> Result<String> {
    let (mut table, mut sections) = (String::new(), String::new());
    for (name, text) in EMBEDDED {
        let file = RunFile { name: (*name).into(), text: (*text).into() };
        let mut own = Overrides::default();
        let plan = load(Some(&file), &own)?.plan;
        let distills = plan.teacher.is_some() || name.starts_with("distill");
        let plan = if distills && plan.teacher.is_none() {
            own.put("teacher", "RUN", Origin::Flag("teacher"))?;
            load(Some(&file), &own)?.plan
        } else {
            plan
        };
        let head = Head::read(text);
        let takes = head.fact("takes").ok_or_else(|| {
            Error::internal(format!("configs/{name}.toml: no line says what it takes"))
        })?;
        let verb = if distills { "distill" } else { "pretrain" };
        let short = takes.split([',', ':']).next().unwrap_or(takes);
        table += &format!("| [`{name}`](#{name}) | `{verb}` | {} | {short} |\n", selection(&plan));
        sections += &section(name, &plan, &head, takes);
    }
    Ok(format!(
        "# Built-in run files

A run file is one run with a name. These are part of the program: `eslm-kd pretrain NAME` or `eslm-kd distill NAME` runs one,
`eslm-kd plan NAME` shows every value and what it costs here, flags and `--set` change it. The files are in `configs/`; a copy
of one is a good start for your own. The methods from `clm` to `eslm-kd-entropy` share model, data and rates, so that
`compare` compares like with like. Sizes hold for the vocabulary that is named; every run shows the true one.

| name | verb | trains on | takes |
|---|---|---|---|
{table}{sections}"
    ))
}

fn selection(plan: &Plan) -> String {
    let select = &plan.select;
    let backward = match plan.machine.backward {
        BackwardMode::Sampled => ", sampled backward",
        _ => "",
    };
    if !plan.selects() {
        return format!("every token{backward}");
    }
    let kept = format!("`{}`, alpha {}{backward}", select.score, select.alpha);
    match select.alpha_seq {
        0.0 => kept,
        share => format!("a share of {} of the sequences, of these {kept}", 1.0 - share),
    }
}

fn section(name: &str, plan: &Plan, head: &Head, takes: &str) -> String {
    let mut text = format!("\n## `{name}`\n\n{}\n", head.about);
    if !head.commands.is_empty() {
        text += &format!("\n```console\n{}\n```\n", head.commands.join("\n"));
    }
    let teacher = match (&plan.teacher, plan.uses_teacher()) {
        (Some(teacher), _) => format!("`{teacher}`"),
        (None, _) => "none".into(),
    };
    let step = plan.data.rows * plan.data.context;
    text += &format!(
        "\n* Teacher: {teacher}. Student: `{}`. Parameters: {}.\n* Trains on: {}.\n* Tokens: {} steps of {} x {} = {}, {} in all.\n",
        plan.student,
        head.fact("parameters").unwrap_or("as the preset says"),
        selection(plan),
        grouped(plan.steps as usize),
        grouped(plan.data.rows),
        grouped(plan.data.context),
        grouped(step),
        grouped(step * plan.steps as usize),
    );
    let takes = match (head.fact("record"), takes.rsplit_once(": ")) {
        (Some(record), Some((time, speed))) => format!("{time}: [{speed}](../../{record})"),
        _ => takes.to_string(),
    };
    text += &format!("* Takes: {takes}.\n");
    if !head.after.is_empty() {
        text += &format!("\n{}\n", head.after);
    }
    text
}
