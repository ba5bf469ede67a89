//! What was written, where: a run file, the environment, flags and `--set`, one layer over the
//! other.

use super::choice::{did_you_mean, nearest};
use super::keys::{self, KEYS, Key};
use crate::error::{Error, Result};
use crate::files::near::similar;
use crate::files::{is_named, read_bounded};
use crate::report::text::quoted;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use toml::Value;
use toml::de::{DeTable, DeValue};

/// A run file has a few kilobytes.
const MOST_BYTES: u64 = 4 << 20;

/// Where a value comes from. Later variants win over earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The table of keys.
    Default,
    /// Other values; the text says which.
    Rule(String),
    /// A line of a run file.
    File { name: String, line: usize },
    /// An environment variable.
    Env(&'static str),
    /// A flag.
    Flag(&'static str),
    /// `--set`.
    Set,
    /// `+key=value` of an arm of a comparison.
    Arm,
    /// [`super::PlanBuilder`].
    Builder,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Rule(why) => write!(f, "default ({why})"),
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Env(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Set => f.write_str("--set"),
            Self::Arm => f.write_str("+key=value"),
            Self::Builder => f.write_str("plan builder"),
        }
    }
}

/// The run files that are part of the binary, by name.
pub const EMBEDDED: &[(&str, &str)] = &[
    ("quickstart", include_str!("../../configs/quickstart.toml")),
    ("quickstart-teacher", include_str!("../../configs/quickstart-teacher.toml")),
    ("pretrain-14m", include_str!("../../configs/pretrain-14m.toml")),
    ("distill-4m", include_str!("../../configs/distill-4m.toml")),
    ("pretrain-clm", include_str!("../../configs/pretrain-clm.toml")),
    ("pretrain-eslm", include_str!("../../configs/pretrain-eslm.toml")),
    ("clm", include_str!("../../configs/clm.toml")),
    ("clm-sampled", include_str!("../../configs/clm-sampled.toml")),
    ("eslm-entropy", include_str!("../../configs/eslm-entropy.toml")),
    ("eslm-loss", include_str!("../../configs/eslm-loss.toml")),
    ("ada-eslm", include_str!("../../configs/ada-eslm.toml")),
    ("random", include_str!("../../configs/random.toml")),
    ("eslm-hierarchical", include_str!("../../configs/eslm-hierarchical.toml")),
    ("rho1", include_str!("../../configs/rho1.toml")),
    ("kd", include_str!("../../configs/kd.toml")),
    ("kd-sampled", include_str!("../../configs/kd-sampled.toml")),
    ("eslm-kd", include_str!("../../configs/eslm-kd.toml")),
    ("eslm-kd-entropy", include_str!("../../configs/eslm-kd-entropy.toml")),
    ("distill-gpt2-medium", include_str!("../../configs/distill-gpt2-medium.toml")),
];

/// A run file's text and the name that messages and origins use for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFile {
    /// Path or embedded name.
    pub name: String,
    /// TOML.
    pub text: String,
}

impl RunFile {
    /// The file at `place`, the `config.toml` of the run folder `place`, or the embedded run file
    /// of that name.
    pub fn find(place: &str) -> Result<Self> {
        let path = Path::new(place);
        let path = if path.is_dir() { path.join("config.toml") } else { path.to_path_buf() };
        if path.exists() || is_named(&path) {
            let text = String::from_utf8(read_bounded(&path, MOST_BYTES)?).map_err(|e| {
                let at = e.utf8_error().valid_up_to();
                Error::usage(format!(
                    "{}: not UTF-8 at byte {at}; a run file is TOML in UTF-8",
                    path.display()
                ))
            })?;
            return Ok(Self { name: path.display().to_string(), text });
        }
        if let Some(found) = Self::embedded(place) {
            return Ok(found);
        }
        if let Some(what) = other_folder(Path::new(place)) {
            return Err(Error::usage(what));
        }
        let names: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
        // `configs/clm.toml`, as the repository has it, is the built-in one.
        let stem = Path::new(place).file_stem().and_then(|stem| stem.to_str()).unwrap_or(place);
        let built_in = nearest(stem, names.iter().copied());
        let on_disk = similar(Path::new(place), |path| {
            path.extension().is_some_and(|e| e == "toml") || path.join("config.toml").is_file()
        });
        let on_disk = on_disk.map(|path| path.display().to_string());
        let near: Vec<&str> = built_in.into_iter().chain(on_disk.as_deref()).collect();
        if !near.is_empty() {
            return Err(Error::data(format!(
                "no run file at {place}, and no built-in one of that name; did you mean {}?",
                super::choice::list(&near)
            )));
        }
        Err(Error::data(format!(
            "no run file at {}; expected a TOML file, a run folder with a config.toml, or one of the built-in names {}",
            path.display(),
            super::choice::list(&names),
        )))
    }

    /// The folder of a file on disk, as an absolute path.
    pub fn folder(&self) -> Option<PathBuf> {
        let path = Path::new(&self.name);
        let absolute = path.is_file().then(|| std::path::absolute(path).ok()).flatten()?;
        absolute.parent().map(Path::to_path_buf)
    }

    /// The built-in run file of that name.
    pub fn embedded(name: &str) -> Option<Self> {
        let (name, text) = EMBEDDED.iter().find(|(n, _)| *n == name)?;
        Some(Self { name: format!("built-in {name}.toml"), text: (*text).to_string() })
    }
}

/// What to write where a folder of something else stands in the place of a run file.
fn other_folder(place: &Path) -> Option<String> {
    let (shown, has) = (quoted(place), |name: &str| place.join(name).is_file());
    if has("train.bin") {
        return Some(format!("{shown} is a data folder and no run file; write --data {shown}"));
    }
    has("config.json").then(|| {
        format!(
            "{shown} is a model and no run file; write --student {shown} to go on from it, --teacher {shown} to learn from it"
        )
    })
}

/// Values by key, each with its origin; writing a key again replaces it.
#[derive(Debug, Clone, Default)]
pub struct Written {
    values: HashMap<&'static str, (Value, Origin)>,
    old_names: Vec<String>,
}

impl Written {
    /// The value of a key, if anyone wrote it.
    pub fn get(&self, name: &str) -> Option<&(Value, Origin)> {
        self.values.get(name)
    }

    /// Checks one value against its key and takes it.
    pub fn put(&mut self, key: &'static Key, value: &Value, origin: Origin) -> Result<()> {
        let Some(accepted) = key.kind.accept(value) else {
            let hint = match value {
                Value::String(word) if key.name == "machine.device" && word == "gpu" => {
                    "; a GPU is \"cuda\"".to_string()
                }
                Value::String(word) => did_you_mean(word, key.kind.words().iter().copied()),
                _ => String::new(),
            };
            // A flag of the key's own name says which it is.
            let flag = format!("--{}", key.name);
            let place = match origin.to_string() {
                text if text == flag => text,
                text => format!("{text}: {}", key.name),
            };
            return Err(Error::usage(format!(
                "{place}: expected {}, found {}{hint}",
                key.kind.expectation(),
                found(value)
            )));
        };
        self.values.insert(key.name, (accepted, origin));
        Ok(())
    }

    /// A note for every value that was written under the name that its key had in earlier versions.
    pub fn old_names(&self) -> &[String] {
        &self.old_names
    }

    fn note_name(&mut self, key: &Key, name: &str, origin: &Origin) {
        if name != key.name {
            self.old_names.push(format!(
                "{origin}: {name} is now called {}; the old name is still read",
                key.name
            ));
        }
    }

    /// Takes a value of the file `file`, which may name the key by its old name, but not by both.
    fn put_line(&mut self, file: &RunFile, name: &str, value: &Value, here: Origin) -> Result<()> {
        let key = known(name, value.is_table(), &here)?;
        if let Some((_, before @ Origin::File { name: written, .. })) = self.get(key.name)
            && *written == file.name
        {
            return Err(twice(key, before, &here));
        }
        self.note_name(key, name, &here);
        self.put(key, value, here)
    }

    /// Forgets the value of a key, as if nobody had written it.
    pub fn remove(&mut self, name: &str) {
        self.values.remove(name);
    }

    /// Takes every value of a run file.
    pub fn put_file(&mut self, file: &RunFile) -> Result<()> {
        let line_of = |at: usize| {
            1 + file.text.as_bytes()[..at.min(file.text.len())]
                .iter()
                .filter(|b| **b == b'\n')
                .count()
        };
        let syntax = |e: toml::de::Error| {
            let line = e.span().map_or(1, |s| line_of(s.start));
            Error::usage(format!("{}:{line}: not valid TOML: {}", file.name, e.message()))
        };
        // Two views of one text: values, and where each key stands.
        let values: toml::Table = file.text.parse().map_err(syntax)?;
        let places = DeTable::parse(&file.text).map_err(syntax)?;
        for (key, place) in places.get_ref() {
            let name: &str = key.get_ref();
            let origin = |at: usize| Origin::File { name: file.name.clone(), line: line_of(at) };
            let here = origin(key.span().start);
            let Some(value) = values.get(name) else { continue };
            if !keys::sections().contains(&name) {
                self.put_line(file, name, value, here)?;
                continue;
            }
            let (Value::Table(inner), DeValue::Table(inner_places)) = (value, place.get_ref())
            else {
                return Err(Error::usage(format!(
                    "{here}: {name} is a section: expected [{name}] with keys below it, found {}",
                    found(value)
                )));
            };
            for (key, value) in inner {
                let at = inner_places
                    .iter()
                    .find(|(k, _)| k.get_ref() == key)
                    .map_or(0, |(k, _)| k.span().start);
                let here = origin(at);
                self.put_line(file, &format!("{name}.{key}"), value, here)?;
            }
        }
        Ok(())
    }
}

/// Values from outside the run file: flags, their environment twins, `--set`.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    list: Vec<Override>,
}

#[derive(Debug, Clone)]
struct Override {
    key: &'static Key,
    /// The key's name as it was given, perhaps the old one.
    name: String,
    value: Value,
    origin: Origin,
}

impl Override {
    /// Environment, then flags, then `--set` and what programs set.
    fn rank(&self) -> u8 {
        match self.origin {
            Origin::Env(_) => 0,
            Origin::Flag(_) => 1,
            _ => 2,
        }
    }
}

impl Overrides {
    /// Adds a value for a key of [`KEYS`], as text.
    pub fn put(&mut self, name: &str, text: &str, origin: Origin) -> Result<()> {
        let value = known(name, false, &origin)?.kind.read(text);
        self.put_value(name, value, origin)
    }

    /// Adds a value for a key of [`KEYS`].
    pub fn put_value(&mut self, name: &str, value: Value, origin: Origin) -> Result<()> {
        let key = known(name, false, &origin)?;
        let new = Override { key, name: name.to_string(), value, origin };
        let same = |old: &&Override| {
            old.key.name == key.name && old.name != new.name && old.rank() == new.rank()
        };
        if let Some(old) = self.list.iter().find(same) {
            return Err(twice(key, &old.origin, &new.origin));
        }
        self.list.push(new);
        Ok(())
    }

    /// Adds a `--set section.key=value`.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let Some((name, text)) = assignment.split_once('=') else {
            return Err(Error::usage(format!(
                "--set: expected section.key=value, found \"{assignment}\""
            )));
        };
        self.put(name.trim(), text.trim(), Origin::Set)
    }

    /// Whether a value for that key is here.
    pub fn names(&self, name: &str) -> bool {
        self.list.iter().any(|o| o.key.name == name)
    }

    /// The value for that key that counts, as it was given.
    pub fn value(&self, name: &str) -> Option<&Value> {
        let of_key = self.list.iter().filter(|o| o.key.name == name);
        of_key.max_by_key(|o| o.rank()).map(|o| &o.value)
    }

    /// Writes them over what stands there: environment, then flags, then `--set` in the order
    /// given.
    pub fn apply(&self, written: &mut Written) -> Result<()> {
        for layer in 0..=2 {
            for Override { key, name, value, origin } in
                self.list.iter().filter(|o| o.rank() == layer)
            {
                written.note_name(key, name, origin);
                written.put(key, value, origin.clone())?;
            }
        }
        Ok(())
    }
}

/// A key under both of its names in one place.
fn twice(key: &Key, before: &Origin, here: &Origin) -> Error {
    Error::usage(format!(
        "{here}: {} was called {} before, and is set under both names, at {before}, too; keep one of them, {}",
        key.name,
        key.was.unwrap_or(key.name),
        key.name
    ))
}

/// The key of that name, or an error that names the nearest.
fn known(name: &str, is_section: bool, origin: &Origin) -> Result<&'static Key> {
    if let Some(key) = keys::find(name) {
        return Ok(key);
    }
    let sections = keys::sections();
    if is_section {
        let hint = nearest(name, sections.iter().copied()).map_or_else(
            || format!("; there are [{}]", sections.join("], [")),
            |s| format!("; did you mean [{s}]?"),
        );
        return Err(Error::usage(format!("{origin}: unknown section [{name}]{hint}")));
    }
    let hint = did_you_mean(name, KEYS.iter().map(|k| k.name));
    let hint = match name.split_once('.') {
        Some((section, _)) if hint.is_empty() && sections.contains(&section) => {
            let prefix = format!("{section}.");
            let keys: Vec<&str> =
                KEYS.iter().filter_map(|k| k.name.strip_prefix(prefix.as_str())).collect();
            format!("; [{section}] has {}", keys.join(", "))
        }
        _ => hint,
    };
    Err(Error::usage(format!("{origin}: unknown key \"{name}\"{hint}")))
}

/// A value and its type, as messages show them.
fn found(value: &Value) -> String {
    match value {
        // A number that no integer holds was left a text.
        Value::String(s) if !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) => s.clone(),
        Value::String(s) => format!("the text \"{s}\""),
        Value::Boolean(b) => format!("{b} (true or false)"),
        Value::Integer(_) | Value::Float(_) => format!("{value}"),
        Value::Array(_) => format!("the list {value}"),
        Value::Table(_) => "a section".into(),
        Value::Datetime(d) => format!("the date {d}"),
    }
}
