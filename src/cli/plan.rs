//! `plan`: what a run is and what it would cost. Trains nothing.

use super::number::whole;
use super::{ConfigArgs, Printer};
use crate::compare::quickstart::{forecast_of_all, is_quickstart};
use crate::config::keys::Fallback;
use crate::config::{Activations, Level, Origin, Resolved, ResolvedValue};
use crate::cost::{self, DiskAtPeak, Flops, MemoryByPart};
use crate::data::prepare::TOKENIZER;
use crate::error::{Error, ErrorKind, Result};
use crate::files::bytes_of_files;
use crate::interrupt::stopped_by;
use crate::machine::available_memory;
use crate::model::Gpt2Config;
use crate::report::text::{self, Screen, Table, quoted};
use crate::store::Where;
use crate::store::hub::HubOptions;
use crate::store::sizes::misnamed;
use crate::train::pace::Pace;
use crate::train::session::{Session, Shapes, device};
use crate::train::threads::use_everywhere;
use serde_json::{Value, json};
use std::path::Path;

/// Show every value of a run and its origin, parameters, tokens, FLOPs, memory and disk; train
/// nothing
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct PlanArgs {
    /// The run.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Show the memory of one of so many processes [default: those that were started]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..=1 << 20))]
    pub processes: Option<usize>,
}

const EXAMPLES: &str = "\
Examples:
  eslm-kd plan quickstart
  eslm-kd plan my-run.toml --alpha 0.5 --micro-rows 4
  eslm-kd plan runs/first                           the run as it was resolved
  eslm-kd plan my-run.toml --json | jq .flops.per_step";

/// Prints the plan.
pub fn run(args: &PlanArgs, ui: &Printer) -> Result<()> {
    let mut resolved = args.config.resolve(None)?;
    let processes = args.processes.unwrap_or(ui.world().size());
    if processes > 1 {
        resolved.plan.machine.groups = resolved.plan.groups(processes);
    }
    let hub = HubOptions::from_env(ui.offline());
    use_everywhere(resolved.plan.machine.threads)?;
    let file = args.config.config.as_deref();
    let at = Where { hub: &hub, progress: ui };
    let mut report = Report::new(resolved, file, processes, at)?;
    report.measure()?;
    ui.result(&report.json(), |screen| report.text(ui.verbose(), screen))
}

/// Everything `plan` says.
struct Report {
    resolved: Resolved,
    /// The plan with its machine half decided, and the models.
    shapes: Shapes,
    /// The target; 0 where nothing is selected.
    level: Level,
    dense: Flops,
    selected: Flops,
    run: f64,
    /// Of one process.
    memory: MemoryByPart,
    processes: usize,
    /// Bytes of the tokenizer's files, which lie in every checkpoint; 0 without data.
    tokenizer: u64,
    /// What a step takes here; None where the models do not fit.
    pace: Option<Pace>,
    /// The runs of the quickstart, if that is what is planned, and what each takes here.
    quickstart: Vec<(&'static str, Shapes, Option<Pace>)>,
    /// What a name says that does not hold here, or does not do.
    of_name: Vec<String>,
}

impl Report {
    fn new(
        resolved: Resolved,
        file: Option<&str>,
        processes: usize,
        at: Where<'_>,
    ) -> Result<Self> {
        let quickstart = match is_quickstart(&resolved.plan) {
            true => forecast_of_all(&resolved.plan, at)?
                .into_iter()
                .map(|(what, run)| (what, run, None))
                .collect(),
            false => Vec::new(),
        };
        // The rest of the quickstart's plan is that of its last run.
        let shapes = match quickstart.last() {
            Some((_, last, _)) => Shapes::clone(last),
            None => Session::shapes(&resolved.plan, at)?,
        };
        let Shapes { plan, student, teacher } = &shapes;
        let level = plan.level();
        let flops =
            |level| cost::flops_per_step_among(student, teacher.as_ref(), plan, level, processes);
        let (dense, selected) = (flops(Level::default()), flops(level));
        let run = cost::flops_of_run_among(student, teacher.as_ref(), plan, processes);
        let memory = shapes.memory_among(processes);
        let mut of_name: Vec<String> =
            misnamed(file, &shapes.plan, &shapes.student).into_iter().collect();
        of_name.extend(file.filter(|name| lacks_a_teacher(name, &resolved)).map(|name| {
            format!(
                "no teacher is named: the plan is that of `eslm-kd pretrain {}`; `eslm-kd distill` needs --teacher NAME",
                quoted(Path::new(name))
            )
        }));
        if processes > 1 {
            of_name.push(format!(
                "memory is that of one of {processes} processes; FLOPs are those of all, and seconds those of one alone"
            ));
        }
        let tokenizer = (shapes.plan.data.dir.as_ref())
            .map_or(0, |data| bytes_of_files(&Path::new(data).join(TOKENIZER)));
        let pace = None;
        Ok(Self {
            resolved,
            shapes,
            level,
            dense,
            selected,
            run,
            memory,
            processes,
            tokenizer,
            pace,
            quickstart,
            of_name,
        })
    }

    /// Times a step, where the models fit into this machine.
    fn measure(&mut self) -> Result<()> {
        let device = device(self.shapes.plan.machine.device)?;
        let memory = available_memory().filter(|_| device.is_cpu()).unwrap_or(u64::MAX);
        let measure = |shapes: &Shapes| {
            Pace::measure(shapes, &device, memory).map_err(|e| match e.kind() {
                // Which step of the measurement it was is nobody's question.
                ErrorKind::Interrupted(signal) => Error::new(e.kind(), stopped_by(signal)),
                _ => e,
            })
        };
        for (_, run, pace) in &mut self.quickstart {
            *pace = measure(run)?;
        }
        // The rest of the quickstart's plan is that of its last run.
        self.pace = match self.quickstart.last() {
            Some((.., pace)) => *pace,
            None => measure(&self.shapes)?,
        };
        Ok(())
    }

    fn disk(&self) -> DiskAtPeak {
        cost::disk_at_peak(&self.shapes.student, &self.shapes.plan, self.tokenizer)
    }

    fn notes(&self) -> Vec<String> {
        self.resolved.notes().into_iter().chain(self.of_name.clone()).collect()
    }

    fn json(&self) -> Value {
        let plan = &self.shapes.plan;
        let model = |name: &str, shape: &Gpt2Config| json!({ "name": name, "parameters": shape.parameters(), "shape": shape });
        let with_total = |mut part: Value, total: Value| {
            part["total"] = total;
            part
        };
        let flops = |f: &Flops| with_total(json!(f), f.total().into());
        let values: Vec<Value> = (self.resolved.values.iter())
            .map(|v| json!({ "key": v.key.name, "value": v.value, "origin": v.origin.to_string() }))
            .collect();
        let quickstart: Vec<Value> = (self.quickstart.iter())
            .map(|(what, s, pace)| {
                json!({
                    "model": what,
                    "parameters": s.student.parameters(),
                    "steps": s.plan.steps,
                    "flops": s.flops(),
                    "seconds": pace.map(|pace| pace.seconds),
                })
            })
            .collect();
        json!({
            "values": values,
            "student": model(&plan.student, &self.shapes.student),
            "teacher": plan.teacher.as_deref().zip(self.shapes.teacher.as_ref()).map(|(name, shape)| model(name, shape)),
            "tokens": {
                "per_step": plan.tokens_per_step(),
                "kept_per_step": cost::kept_rows(plan, self.level),
                "total": plan.tokens(),
            },
            "machine": { "micro_rows": plan.machine.micro_rows, "head": plan.machine.head, "activations": plan.machine.activations },
            "flops": {
                "per_step": flops(&self.selected),
                "per_step_keeping_all": flops(&self.dense),
                "total": self.run,
            },
            "memory": with_total(json!(self.memory), self.memory.total().into()),
            "disk": {
                "checkpoint": cost::checkpoint_bytes(&self.shapes.student) + self.tokenizer,
                "checkpoints": self.disk().checkpoints,
                "total": self.disk().bytes,
            },
            "seconds": self.pace.map(|pace| json!({
                "per_step": pace.seconds_per_step,
                "total": pace.seconds,
                "tokens_per_second": pace.tokens_per_second,
            })),
            "quickstart": quickstart,
            "notes": self.notes(),
        })
    }

    fn text(&self, meanings: bool, screen: &Screen) -> String {
        let tables =
            [self.values(meanings), self.models(), self.tokens(), self.flops(), self.memory()];
        let mut sections = tables.map(|table| table.on(screen)).to_vec();
        sections.push(self.time(screen));
        sections.extend(self.quickstart(screen));
        let notes = self.notes();
        if !notes.is_empty() {
            sections.push(notes.iter().map(|n| format!("note: {n}\n")).collect());
        }
        sections.join("\n")
    }

    fn values(&self, meanings: bool) -> Table {
        let mut table =
            Table::new(["key", "value", "origin"].into_iter().chain(meanings.then_some("meaning")));
        for v in &self.resolved.values {
            let value = match &v.value {
                None => "absent".to_string(),
                Some(toml::Value::Float(x)) if *x != 0.0 && x.abs() < 1e-3 => format!("{x:e}"),
                Some(value) => value.to_string(),
            };
            // Never a bare number, so that the column stays on the left.
            let cells = [v.key.name.to_string(), format!("= {value}"), v.origin.to_string()];
            table.row(cells.into_iter().chain(meanings.then(|| v.key.help.to_string())));
        }
        table
    }

    fn models(&self) -> Table {
        let mut table = Table::new([
            "model",
            "name",
            "parameters",
            "vocabulary",
            "positions",
            "width",
            "blocks",
            "heads",
        ]);
        let mut row = |who: &str, name: &str, s: &Gpt2Config| {
            let numbers =
                [s.parameters(), s.vocab_size, s.n_positions, s.n_embd, s.n_layer, s.n_head];
            let numbers = numbers.map(|n| text::count(n as u64));
            table.row([who.to_string(), name.to_string()].into_iter().chain(numbers));
        };
        row("student", &self.shapes.plan.student, &self.shapes.student);
        if let (Some(name), Some(shape)) = (&self.shapes.plan.teacher, &self.shapes.teacher) {
            row("teacher", name, shape);
        }
        table
    }

    fn tokens(&self) -> Table {
        let plan = &self.shapes.plan;
        let mut table = Table::new(["tokens", "number", "how"]);
        let rows = format!(
            "{} sequences x {}",
            text::count(plan.data.rows as u64),
            text::count(plan.data.context as u64)
        );
        table.row(["per step".to_string(), text::count(plan.tokens_per_step()), rows]);
        let kept = text::count(cost::kept_rows(plan, self.level));
        let how = format!(
            "{} at the target alpha, {} on average",
            text::percent(cost::kept_share(plan, self.level)),
            text::percent(cost::mean_keep(plan))
        );
        table.row(["kept per step".to_string(), kept, how]);
        table.row([
            "in all".to_string(),
            text::count(plan.tokens()),
            text::amount(plan.steps, "steps"),
        ]);
        table
    }

    fn flops(&self) -> Table {
        let title = if self.shapes.plan.draws_by_variance() {
            "FLOPs per step, at most"
        } else {
            "FLOPs per step"
        };
        let mut table = Table::new([title, "at target alpha", "keeping all"]);
        let parts =
            |f: &Flops| [f.student_forward, f.student_backward, f.teacher, f.scoring, f.total()];
        let names = ["student forward", "student backward", "teacher", "scoring", "sum"];
        for ((name, a), b) in names.into_iter().zip(parts(&self.selected)).zip(parts(&self.dense)) {
            table.row([name.to_string(), text::flops(a as u128), text::flops(b as u128)]);
        }
        table.row(["the whole run".to_string(), text::flops(self.run as u128)]);
        table
    }

    fn time(&self, screen: &Screen) -> String {
        let Some(pace) = self.pace else {
            return "time: not measured, since the models do not fit into the memory that is free\n".into();
        };
        let mut table = Table::new(["time here", "takes", "how"]);
        table.row([
            "a step".to_string(),
            text::seconds(pace.seconds_per_step),
            format!("measured; {} tokens per second", text::count(pace.tokens_per_second as u64)),
        ]);
        let how = "without validations and checkpoints".to_string();
        table.row(["the whole run".to_string(), text::seconds(pace.seconds), how]);
        table.on(screen)
    }

    /// The quickstart's runs, of which the rest of the plan shows the last.
    fn quickstart(&self, screen: &Screen) -> Option<String> {
        self.quickstart.last()?;
        let header = ["the quickstart trains", "parameters", "steps", "FLOPs", "time here"];
        let mut table = Table::new(header);
        let time = |seconds: Option<f64>| seconds.map_or_else(|| "-".into(), text::seconds);
        for (what, run, pace) in &self.quickstart {
            let (parameters, flops) = (run.student.parameters() as u64, run.flops() as u128);
            let steps = text::count(run.plan.steps);
            let numbers = [text::count(parameters), steps, text::flops(flops)];
            let seconds = time(pace.map(|pace| pace.seconds));
            table.row(std::iter::once((*what).to_string()).chain(numbers).chain([seconds]));
        }
        let steps = self.quickstart.iter().map(|(_, run, _)| run.plan.steps).sum();
        let flops: f64 = self.quickstart.iter().map(|(_, run, _)| run.flops()).sum();
        let seconds = self.quickstart.iter().map(|(.., pace)| pace.map(|p| p.seconds)).sum();
        let all = [String::new(), text::count(steps), text::flops(flops as u128), time(seconds)];
        table.row(std::iter::once("in all".to_string()).chain(all));
        let says = "The rest of the plan is that of the last one.\n\
                    The teacher is kept: eslm-kd plan quickstart-teacher";
        Some(format!("{}{says}\n", table.on(screen)))
    }

    fn memory(&self) -> Table {
        let plan = &self.shapes.plan;
        let m = &self.memory;
        let mut table = Table::new(["memory and disk", "bytes", "how"]);
        let mut row = |name: &str, bytes: u64, how: String| {
            table.row([name.to_string(), text::bytes(bytes), how]);
        };
        row("weights", m.weights, String::new());
        row("gradients", m.gradients, String::new());
        let moments = match self.processes {
            1 => "two per weight",
            _ => "two per weight, divided among processes",
        };
        row("moments", m.moments, moments.into());
        let tape = match plan.machine.activations {
            Activations::Keep => "tape",
            Activations::Recompute => "inputs of blocks, tape of one,",
        };
        let tokens = format!(
            "{} x {} tokens",
            plan.machine.micro_rows,
            text::count(plan.data.context as u64)
        );
        row("activations", m.activations, format!("{tape} of {tokens}"));
        let stored = cost::stores_logits(plan);
        let how = if stored {
            format!("head = {}", plan.machine.head)
        } else {
            "of a block of rows in hand".into()
        };
        row("logits", m.logits, how);
        if self.shapes.teacher.is_some() {
            row("teacher", m.teacher, "weights, no tape".into());
        }
        row("scratch", m.scratch, "of one block's backward, beyond the logits'".into());
        let rows = text::count(plan.data.rows as u64);
        row("batch", m.batch, format!("tokens of two steps, {rows} sequences each"));
        if self.processes > 1 {
            row("on the way", m.on_the_way, "gradients and weights of other processes".into());
        }
        row("program", m.program, "its own buffers and its allocator's".into());
        row("memory in all", m.total(), "at the peak".into());
        let checkpoint = cost::checkpoint_bytes(&self.shapes.student) + self.tokenizer;
        let parts = match self.tokenizer {
            0 => "weights, moments; a tokenizer comes to it",
            _ => "weights, moments, tokenizer",
        };
        row("one checkpoint", checkpoint, parts.into());
        let disk = self.disk();
        let checkpoints = text::amount(disk.checkpoints, "checkpoints");
        let how = match disk.with_model {
            true => format!("at the end: {checkpoints} and model/"),
            false => format!("at the peak: {checkpoints}, one of them being written"),
        };
        row("disk in all", disk.bytes, how);
        table
    }
}

/// Whether the run file of that name is one for `distill`, by its name or by what it says of the
/// objective, and nobody named a teacher.
fn lacks_a_teacher(name: &str, resolved: &Resolved) -> bool {
    let says = |v: &ResolvedValue| {
        let default = match v.key.default {
            Fallback::Is(text) => Some(v.key.kind.read(text)),
            _ => None,
        };
        v.key.name.starts_with("objective.")
            && v.origin != Origin::Default
            && default.is_some_and(|default| v.value.as_ref() != Some(&default))
    };
    !resolved.plan.is_taught() && (name.starts_with("distill") || resolved.values.iter().any(says))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use std::path::Path;

    fn planned(config: &ConfigArgs) -> Result<Report> {
        let hub = HubOptions {
            offline: true,
            ..HubOptions::new("http://127.0.0.1:9", Path::new("/nonexistent"))
        };
        let file = config.config.as_deref();
        Report::new(config.resolve(None)?, file, 1, Where { hub: &hub, progress: &Silent })
    }

    fn report(set: &[&str]) -> Result<Report> {
        let config = ConfigArgs {
            config: Some("distill-gpt2-medium".into()),
            set: set.iter().map(ToString::to_string).collect(),
            ..ConfigArgs::default()
        };
        planned(&config)
    }

    #[test]
    fn the_numbers_of_the_shipped_comments_are_the_computed_ones() {
        let json = report(&[]).unwrap().json();
        assert_eq!(json["student"]["parameters"], 124_439_808);
        assert_eq!(json["teacher"]["parameters"], 354_823_168);
        assert_eq!(json["tokens"]["per_step"], 65_536);
        assert_eq!(json["tokens"]["kept_per_step"], 59_008);
        assert_eq!(json["tokens"]["total"], 655_360_000);
        let tile = 1024 * 4096 * 4;
        let logits = (json["memory"]["logits"].as_u64().unwrap() - tile) / 1_000_000;
        assert_eq!(logits, 411, "206 MB for each of two models, beside a tile of gradient");
    }

    #[test]
    fn the_methods_of_a_comparison_differ_in_the_method_alone_and_their_comments_are_right() {
        let methods = [
            "clm",
            "clm-sampled",
            "random",
            "eslm-entropy",
            "eslm-loss",
            "ada-eslm",
            "eslm-hierarchical",
            "rho1",
            "kd",
            "kd-sampled",
            "eslm-kd",
            "eslm-kd-entropy",
        ];
        let of = |name: &str| {
            let config = ConfigArgs { config: Some(name.into()), ..ConfigArgs::default() };
            planned(&config).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        let plain = of("clm").shapes.plan;
        for name in methods {
            let report = of(name);
            let text = crate::config::RunFile::embedded(name).unwrap().text;
            let plan = &report.shapes.plan;
            let numbers =
                [plan.tokens_per_step(), plan.tokens(), cost::kept_rows(plan, report.level)];
            for number in numbers {
                assert!(
                    text.contains(&format!("= {:>9}", text::count(number)))
                        || text.contains(&format!("= {}", text::count(number))),
                    "{name}: {number}"
                );
            }
            assert!(text.contains(&text::count(4_291_584)), "{name}");
            if report.shapes.teacher.is_some() {
                assert!(
                    text.contains(&text::count(report.shapes.student.parameters() as u64)),
                    "{name}"
                );
            }
            let mut same = plan.clone();
            (same.method, same.teacher) = (plain.method, None);
            (same.select, same.objective, same.machine) =
                (plain.select.clone(), plain.objective.clone(), plain.machine.clone());
            assert_eq!(same, plain, "{name} differs in more than its method");
        }
        let vocabulary = Gpt2Config { vocab_size: 8192, ..of("clm").shapes.student };
        assert_eq!(vocabulary.parameters(), 4_291_584);
    }

    #[test]
    fn the_text_names_every_key_and_says_what_selection_saves() {
        let text = report(&["select.alpha=0.8"]).unwrap().text(true, &Screen::default());
        for key in crate::config::keys::KEYS {
            assert!(text.contains(key.name), "{} is missing", key.name);
        }
        for part in [
            "--set",
            "built-in distill-gpt2-medium.toml:",
            "13,120",
            "student backward",
            "disk in all",
        ] {
            assert!(text.contains(part), "{part:?} is missing:\n{text}");
        }
        let json = report(&["select.alpha=0.8"]).unwrap().json();
        let total = |which: &str| json["flops"][which]["total"].as_f64().unwrap();
        assert!(total("per_step") < total("per_step_keeping_all"));
    }

    #[test]
    fn the_quickstarts_plan_has_all_of_its_runs_in_their_vocabulary() {
        let of = |set: &[&str]| {
            let set = set.iter().map(ToString::to_string).collect();
            let config = Some("quickstart".into());
            planned(&ConfigArgs { config, set, ..ConfigArgs::default() }).unwrap()
        };
        let json = of(&[]).json();
        let runs = json["quickstart"].as_array().unwrap();
        let parameters = runs.iter().map(|run| run["parameters"].as_u64().unwrap());
        let student = json["student"]["parameters"].as_u64().unwrap();
        let teacher = runs[0]["parameters"].as_u64().unwrap();
        assert!(json["teacher"].is_null(), "what it said is read from the disk");
        let beside = of(&["objective.signal=dense"]).json();
        assert_eq!(beside["teacher"]["parameters"], teacher);
        assert!(beside["flops"]["total"].as_f64() > json["flops"]["total"].as_f64());
        assert_eq!(parameters.collect::<Vec<_>>(), [teacher, student, student, student, student]);
        assert_eq!(runs[4]["flops"], json["flops"]["total"]);
        let comments = crate::config::RunFile::embedded("quickstart").unwrap().text;
        for number in [student, teacher] {
            assert!(comments.contains(&text::count(number)), "{number}");
        }
        assert!(of(&[]).text(false, &Screen::default()).contains("plain"));
        let dense = of(&["select.alpha=0"]).json();
        assert_eq!(dense["quickstart"].as_array().unwrap().len(), 3, "nothing is selected");
        assert_eq!(report(&[]).unwrap().json()["quickstart"], json!([]));
    }

    #[test]
    fn a_run_file_for_distillation_without_a_teacher_is_noted() {
        let notes = |config: &str, set: &[&str]| {
            let set = set.iter().map(ToString::to_string).collect();
            let config = ConfigArgs { config: Some(config.into()), set, ..ConfigArgs::default() };
            planned(&config).unwrap().notes().join(" ")
        };
        assert!(notes("distill-4m", &[]).contains("`eslm-kd distill` needs --teacher"));
        assert!(notes("clm", &["objective.temperature=2"]).contains("needs --teacher"));
        assert!(!notes("clm", &[]).contains("needs --teacher"));
        assert!(!notes("distill-4m", &["teacher=gpt2"]).contains("needs --teacher"));
    }

    #[test]
    fn models_that_cannot_be_found_or_do_not_fit_are_errors() {
        let message = |set: &[&str]| report(set).err().expect("an error").to_string();
        assert!(message(&["teacher=gpt2-meduim"]).contains("Did you mean gpt2-medium?"));
        assert!(
            message(&["data.context=2048", "eval.stride=64"])
                .contains("1024 positions of the student gpt2-124m")
        );
        let wide = report(&["student=tiny", "data.context=64"]).unwrap();
        assert_eq!(
            wide.shapes.student.vocab_size, 50257,
            "a student from scratch speaks the teacher's vocabulary"
        );
        let stored = message(&[
            "student=distilgpt2",
            "init=checkpoint",
            "teacher=quickstart",
            "data.context=64",
        ]);
        assert!(stored.contains("share a vocabulary"), "{stored}");
        assert!(message(&["shape.n_head=7"]).contains("n_head = 7"));
        let fixed = message(&["student=distil-82m", "teacher=gpt2", "shape.n_layer=3"]);
        assert!(fixed.contains("[shape] cannot change the student distil-82m"), "{fixed}");
    }

    #[test]
    fn every_shipped_run_file_can_be_planned() {
        for (name, _) in crate::config::EMBEDDED {
            let config = ConfigArgs { config: Some((*name).into()), ..ConfigArgs::default() };
            let report = planned(&config).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(report.memory.total() > 0 && report.run > 0.0);
        }
    }
}
