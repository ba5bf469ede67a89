//! The arms of a comparison as they are written, `[LABEL:]CONFIG[+key=value...]`, and the plans
//! they mean.
//!
//! A `+` begins an override only where the name of a key and `=` follow, so that paths and values
//! may contain one (`c++/run.toml`, `1e+3`); a `LABEL:` is one only if no file of that whole name
//! exists.

use crate::config::{
    Method, Origin, Overrides, Plan, ProbeScore, RunFile, Score, Written, keys, resolve,
};
use crate::error::{Error, Result};
use crate::store::context::fit_context;
use crate::store::places::find_again;
use crate::train::threads::aside;
use std::path::Path;

/// The value of `teacher` that takes a run file's teacher away.
const NO_TEACHER: &str = "none";

/// One arm: a name and what it trains.
#[derive(Debug, Clone)]
pub struct Arm {
    /// The name in tables, charts and folders.
    pub label: String,
    /// As it was written.
    pub spec: String,
    /// The run; its seed is replaced for every run of the arm.
    pub plan: Plan,
}

impl Arm {
    /// Its run file, as it was written.
    pub fn config(&self) -> &str {
        Spec::parse(&self.spec).map_or("", |spec| spec.config)
    }
}

/// `[LABEL:]CONFIG[+key=value...]`, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Spec<'a> {
    label: Option<&'a str>,
    config: &'a str,
    /// Name and value.
    own: Vec<(&'a str, &'a str)>,
}

impl<'a> Spec<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let mut cuts: Vec<usize> = text.match_indices('+').map(|(at, _)| at).collect();
        cuts.retain(|&at| {
            let rest = &text[at + 1..];
            rest.split_once('=').is_some_and(|(name, _)| looks_like_a_key(name))
        });
        cuts.push(text.len());
        let head = &text[..cuts[0]];
        let own = cuts
            .windows(2)
            .map(|c| text[c[0] + 1..c[1]].split_once('=').unwrap_or_default())
            .collect();
        let (label, config) = match head.split_once(':') {
            Some((label, config)) if !Path::new(head).exists() => {
                (Some(label.trim()), config.trim())
            }
            _ => (None, head.trim()),
        };
        if let Some(label) = label {
            check_label(label, text)?;
        }
        if config.is_empty() {
            return Err(Error::usage(format!(
                "arm \"{text}\": expected [LABEL:]CONFIG[+key=value...], found no CONFIG: a run file, a run folder or the \
                 name of a built-in run file"
            )));
        }
        Ok(Self { label, config, own })
    }
}

fn looks_like_a_key(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._".contains(&b))
}

/// A label names a folder, a row of a table and a line of a chart.
fn check_label(label: &str, spec: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || " ._=,@%-".contains(c);
    let good = label.starts_with(|c: char| c.is_ascii_alphanumeric())
        && label.chars().all(fits)
        && label.len() <= 80;
    if good {
        return Ok(());
    }
    Err(Error::usage(format!(
        "arm \"{spec}\": the label \"{label}\" must begin with a letter or digit and may hold, besides these, spaces and \
         . _ = , @ % - (80 characters at most)"
    )))
}

/// The arms that `specs` ask for. `set` goes over every run file, and an arm's own overrides go
/// over that. A value of `select.` or `objective.` in `set` is for those arms that select, or that
/// have a teacher.
pub fn resolve_arms(specs: &[String], set: &[String], data: Option<&str>) -> Result<Vec<Arm>> {
    let mut arms: Vec<Arm> = Vec::with_capacity(specs.len());
    for text in specs {
        let spec = Spec::parse(text)?;
        let plan = plan(&spec, set, data).map_err(|e| e.context(format!("arm \"{text}\"")))?;
        let label = spec.label.map_or_else(|| default_label(&spec), str::to_string);
        let bare = spec.label.and_then(|_| text.split_once(':')).map_or(&**text, |(_, rest)| rest);
        if let Some(other) = arms.iter().find(|a| folder_name(&a.label) == folder_name(&label)) {
            return Err(Error::usage(format!(
                "arm \"{text}\": the label \"{label}\" is that of \"{}\", too; give one of them another: LABEL:{bare}",
                other.spec
            )));
        }
        arms.push(Arm { label, spec: text.clone(), plan });
    }
    let Some(first) = arms.first() else {
        return Err(Error::usage(
            "nothing to compare: name at least one arm, CONFIG[+key=value...]",
        ));
    };
    if let Some(other) = arms.iter().find(|a| a.plan.data.dir != first.plan.data.dir) {
        let place = |arm: &Arm| arm.plan.data.dir.clone().unwrap_or_else(|| "none".into());
        return Err(Error::usage(format!(
            "every arm must read the same data: \"{}\" reads {}, \"{}\" reads {}; use --data DIR for all",
            first.label,
            place(first),
            other.label,
            place(other)
        )));
    }
    if let Some(other) = arms.iter().find(|a| a.plan.machine.threads != first.plan.machine.threads)
    {
        return Err(Error::usage(format!(
            "the arms \"{}\" and \"{}\" differ in machine.threads, which is one for the whole comparison; use \
             --set machine.threads=N",
            first.label, other.label
        )));
    }
    Ok(arms)
}

fn plan(spec: &Spec<'_>, set: &[String], data: Option<&str>) -> Result<Plan> {
    let file = RunFile::find(spec.config)?;
    let mut own = Overrides::default();
    for (name, value) in &spec.own {
        match name.trim() {
            "seed" => {
                return Err(Error::usage(
                    "the seeds are those of --seeds N, for every arm; remove seed",
                ));
            }
            "teacher" if value.trim() == NO_TEACHER => {}
            name => own.put(name, value.trim(), Origin::Arm)?,
        }
    }
    let alone =
        spec.own.iter().any(|(name, value)| (name.trim(), value.trim()) == ("teacher", NO_TEACHER));
    let written = |with: &dyn Fn(&str) -> bool| -> Result<Written> {
        let mut written = Written::default();
        written.put_file(&file)?;
        let mut shared = Overrides::default();
        if let Some(data) = data {
            shared.put("data.dir", data, Origin::Flag("data"))?;
        }
        for assignment in
            set.iter().filter(|a| a.split_once('=').is_none_or(|(name, _)| with(name.trim())))
        {
            shared.set(assignment)?;
        }
        shared.apply(&mut written)?;
        if alone {
            written.remove("teacher");
            written.remove("data.signal");
            written.remove("objective.lambda");
            written.remove("objective.lambda_end");
        }
        own.apply(&mut written)?;
        Ok(written)
    };
    // What the arm is decides which of the shared values are for it.
    let bare = resolve(&written(&|name| {
        !name.starts_with("select.") && !name.starts_with("objective.")
    })?)?
    .plan;
    let fits = |name: &str| match name.split_once('.') {
        Some(("select", _)) => bare.method != Method::Clm,
        Some(("objective", _)) => bare.is_taught(),
        _ => true,
    };
    let mut resolved = resolve(&written(&fits)?)?;
    aside(move || {
        find_again(&mut resolved, &file, None)?;
        fit_context(&mut resolved)?;
        Ok(resolved.plan)
    })
}

/// The run file's name and the arm's own values, without sections and without folders:
/// `distill-4m+alpha=0.3`.
fn default_label(spec: &Spec<'_>) -> String {
    let base = |path: &str| {
        let name = Path::new(path)
            .file_name()
            .map_or_else(|| path.to_string(), |n| n.to_string_lossy().into_owned());
        name.strip_suffix(".toml").map(str::to_string).unwrap_or(name)
    };
    let mut label = base(spec.config);
    for (name, value) in &spec.own {
        let short = name.rsplit('.').next().unwrap_or(name).trim();
        let names = keys::KEYS.iter().flat_map(|k| [Some(k.name), k.was]).flatten();
        let unique = names.filter(|name| name.rsplit('.').next() == Some(short)).count() == 1;
        let text = if value.contains('/') { base(value) } else { value.trim().to_string() };
        label += &format!("+{}={text}", if unique { short } else { name.trim() });
    }
    label
}

/// The folder of an arm: its label with everything that a shell or a file system may stumble over
/// replaced.
pub fn folder_name(label: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._=,@%+-".contains(c) { c } else { '-' };
    let name: String = label.chars().map(safe).collect();
    if name.starts_with('.') { format!("_{name}") } else { name }
}

impl Arm {
    /// Whether this is plain training: every token, no teacher.
    pub fn is_plain(&self) -> bool {
        !self.plan.selects() && !self.plan.uses_teacher()
    }

    /// Whether `other` is this arm with random scores and otherwise the same: its control at equal
    /// keep. What is random is the score of whatever drops something: tokens, sequences or both.
    pub fn has_control(&self, other: &Self) -> bool {
        let random = |plan: &Plan| {
            let mut plan = plan.clone();
            if plan.select.alpha > 0.0 {
                plan.select.score = Score::Random;
            }
            if plan.select.alpha_seq > 0.0 {
                plan.select.probe_score = ProbeScore::Random;
            }
            plan.mathematics()
        };
        let (this, other) = (self.plan.mathematics(), other.plan.mathematics());
        self.plan.selects() && this != other && random(&self.plan) == other
    }
}

/// The arm that the others are measured against: `wanted` by its label, or else the first plain
/// one, or else the first.
pub fn baseline(arms: &[Arm], wanted: Option<&str>) -> Result<usize> {
    let Some(label) = wanted else { return Ok(arms.iter().position(Arm::is_plain).unwrap_or(0)) };
    arms.iter().position(|a| a.label == label).ok_or_else(|| {
        let labels: Vec<String> = arms.iter().map(|a| format!("\"{}\"", a.label)).collect();
        Error::usage(format!(
            "--baseline: no arm has the label \"{label}\"; there are {}",
            labels.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arms(specs: &[&str], set: &[&str]) -> Result<Vec<Arm>> {
        let own = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        resolve_arms(&own(specs), &own(set), Some("d"))
    }

    fn message(specs: &[&str], set: &[&str]) -> String {
        arms(specs, set).unwrap_err().to_string()
    }

    #[test]
    fn a_plus_cuts_only_before_a_key_and_a_colon_only_where_no_file_is_meant() {
        let parse = |text| Spec::parse(text).unwrap();
        assert_eq!(
            parse("mine: distill-4m+select.alpha=0.3+optim.lr=1e+3"),
            Spec {
                label: Some("mine"),
                config: "distill-4m",
                own: vec![("select.alpha", "0.3"), ("optim.lr", "1e+3")]
            }
        );
        let odd = parse("c++/run.toml+teacher=a+b/model");
        assert_eq!((odd.config, odd.own), ("c++/run.toml", vec![("teacher", "a+b/model")]));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a:b.toml");
        std::fs::write(&path, "steps = 3\n").unwrap();
        let text = format!("{}+steps=4", path.display());
        assert_eq!(parse(&text).label, None);
        assert_eq!(default_label(&parse(&text)), "a:b+steps=4");
        assert!(Spec::parse("../x:run").unwrap_err().to_string().contains("the label \"../x\""));
        assert!(Spec::parse("a:+steps=3").unwrap_err().to_string().contains("found no CONFIG"));
    }

    #[test]
    fn labels_are_readable_and_unique() {
        let all = arms(
            &["distill-4m", "distill-4m+select.alpha=0.3+teacher=runs/t", "x:distill-4m"],
            &[],
        )
        .unwrap();
        let labels: Vec<&str> = all.iter().map(|a| a.label.as_str()).collect();
        assert_eq!(labels, ["distill-4m", "distill-4m+alpha=0.3+teacher=t", "x"]);
        assert!(
            message(&["a b:distill-4m", "a-b:distill-4m+steps=3"], &[])
                .contains("give one of them another: LABEL:distill-4m+steps=3")
        );
        assert!(message(&["distill-4m", "distill-4m"], &[]).contains("another: LABEL:distill-4m"));
        assert_eq!(folder_name("a b/c:d"), "a-b-c-d");
        assert_eq!(folder_name(".."), "_..");
    }

    #[test]
    fn shared_values_go_to_the_arms_that_they_fit_and_own_values_win() {
        let set = ["select.alpha=0.4", "objective.lambda=0.7", "steps=9", "teacher=t"];
        let all = arms(
            &[
                "distill-4m",
                "distill-4m+method=clm+teacher=none",
                "distill-4m+method=clm",
                "distill-4m+steps=5+teacher=u",
            ],
            &set,
        )
        .unwrap();
        let [eslm, plain, dense, own] = all.as_slice() else { panic!("four arms") };
        assert_eq!(
            (eslm.plan.select.alpha, eslm.plan.objective.lambda, eslm.plan.steps),
            (0.4, 0.7, 9)
        );
        assert!(
            plain.is_plain() && plain.plan.teacher.is_none() && plain.plan.objective.lambda == 0.0
        );
        assert!(!dense.plan.selects() && dense.plan.objective.lambda == 0.7 && !dense.is_plain());
        assert_eq!((own.plan.steps, own.plan.teacher.as_deref()), (5, Some("u")));
        // A signal goes where a teacher would.
        let specs = ["distill-4m", "distill-4m+method=clm+teacher=none"];
        let [eslm, plain] = &arms(&specs, &["data.signal=s"]).unwrap()[..] else { panic!("two") };
        assert!(eslm.plan.data.signal.is_some() && !plain.plan.is_taught() && plain.is_plain());
        assert_eq!(baseline(&all, None).unwrap(), 1);
        assert_eq!(baseline(&all, Some("distill-4m")).unwrap(), 0);
        assert!(
            baseline(&all, Some("y"))
                .unwrap_err()
                .to_string()
                .contains("\"distill-4m+method=clm\"")
        );
    }

    #[test]
    fn the_control_of_an_arm_differs_in_the_score_alone() {
        let all = arms(
            &[
                "a:distill-4m",
                "b:distill-4m+select.score=random",
                "c:distill-4m+select.score=random+select.alpha=0.3",
            ],
            &[],
        )
        .unwrap();
        let has = |i: usize, j: usize| all[i].has_control(&all[j]);
        assert!(has(0, 1) && !has(0, 2) && !has(1, 0) && !has(1, 2) && !has(0, 0));
        let phase_one = "distill-4m+select.alpha_seq=0.5+machine.micro_rows=16";
        let specs = [
            "",
            "+select.probe_score=random",
            "+select.alpha=0",
            "+select.alpha=0+select.probe_score=random",
            "+select.score=random+select.probe_score=random",
        ]
        .map(|more| format!("{phase_one}{more}"));
        let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
        let all = arms(&specs, &[]).unwrap();
        let has = |i: usize, j: usize| all[i].has_control(&all[j]);
        assert!(has(0, 4) && !has(0, 1) && has(1, 4) && has(2, 3) && !has(2, 4) && !has(4, 4));
    }

    #[test]
    fn mistakes_name_the_arm() {
        assert!(message(&[], &[]).contains("at least one arm"));
        assert!(
            message(&["distill-4m+select.alhpa=1"], &[])
                .contains("arm \"distill-4m+select.alhpa=1\": +key=value: unknown")
        );
        assert!(message(&["distill-4n"], &[]).contains("did you mean \"distill-4m\"?"));
        assert!(message(&["distill-4m+seed=3"], &[]).contains("--seeds"));
        assert!(message(&["a:distill-4m", "b:distill-4m+data.dir=e"], &[]).contains("same data"));
        assert!(
            message(&["a:distill-4m", "b:distill-4m+machine.threads=1"], &[])
                .contains("machine.threads")
        );
    }
}
