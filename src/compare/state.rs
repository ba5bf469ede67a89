//! `compare.json`: what a comparison is, so that a later call goes on with the same arms, steps and
//! data.

use super::arms::{Arm, baseline};
use super::budget::Budget;
use crate::config::{Overrides, Plan, RunFile, load};
use crate::error::{Error, Result};
use crate::files::{read_bounded, write_atomic};
use crate::store::checkpoint::Models;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file inside the folder of a comparison.
pub const FILE: &str = "compare.json";
const FORMAT: &str = "eslm-kd comparison";
const VERSION: u32 = 1;
/// A few kilobytes for each arm.
const MOST_BYTES: u64 = 16 << 20;

/// The whole of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    format: String,
    version: u32,
    /// What is held equal.
    pub budget: Budget,
    /// Label of the arm that the others are measured against.
    pub baseline: String,
    /// Whether `--baseline` named it; else it is found among the arms.
    #[serde(default)]
    pub baseline_named: bool,
    /// Seeds, ascending.
    pub seeds: Vec<u64>,
    /// What is read.
    pub data: DataState,
    /// Arms, in the order in which they were first named.
    pub arms: Vec<ArmState>,
    /// Names of other text.
    pub also: Vec<String>,
    /// Most tokens of each text that finished runs are evaluated on; 0 is all.
    #[serde(default)]
    pub eval_tokens: u64,
}

/// Hashes and sizes of the data folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataState {
    /// The folder as it was named.
    pub dir: String,
    /// Hash of the training tokens.
    pub train_hash: String,
    /// Hash of the validation tokens.
    pub valid_hash: String,
    /// Training tokens.
    pub train_tokens: u64,
    /// Validation tokens.
    pub valid_tokens: u64,
    /// Tokens of the vocabulary.
    pub vocabulary: u32,
}

/// One arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArmState {
    /// Its name.
    pub label: String,
    /// As it was written.
    pub spec: String,
    /// Its run file, resolved, before the budget changed its steps. TOML, which keeps every bit of
    /// a number.
    pub config: String,
    /// The stored models that it reads.
    #[serde(flatten)]
    pub models: Models,
    /// Parameters of its student.
    pub parameters: u64,
    /// Steps under the budget; None until the baseline's seconds are known.
    pub steps: Option<u64>,
    /// Seconds per step as measured; None unless the budget is seconds, and for the baseline.
    pub seconds_per_step: Option<f64>,
}

impl ArmState {
    /// The arm with the plan as written.
    pub fn arm(&self) -> Result<Arm> {
        let file =
            RunFile { name: format!("{FILE}, arm \"{}\"", self.label), text: self.config.clone() };
        let plan: Plan = load(Some(&file), &Overrides::default())?.plan;
        Ok(Arm { label: self.label.clone(), spec: self.spec.clone(), plan })
    }
}

impl State {
    /// A comparison without arms.
    pub fn new(budget: Budget, data: DataState) -> Self {
        Self {
            format: FORMAT.into(),
            version: VERSION,
            budget,
            baseline: String::new(),
            baseline_named: false,
            seeds: Vec::new(),
            data,
            arms: Vec::new(),
            also: Vec::new(),
            eval_tokens: 0,
        }
    }

    /// That of the folder `out`, if it holds one.
    pub fn read(out: &Path) -> Result<Option<Self>> {
        let path = out.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let mut state: Self =
            serde_json::from_slice(&read_bounded(&path, MOST_BYTES)?).map_err(|e| {
                Error::data(format!(
                    "{}: expected what `eslm-kd compare` writes, found {e}; move it away",
                    path.display()
                ))
            })?;
        if (state.format.as_str(), state.version) != (FORMAT, VERSION) {
            return Err(Error::data(format!(
                "{}: expected \"{FORMAT}\", version {VERSION}, found \"{}\", version {}; use the program that wrote it",
                path.display(),
                state.format,
                state.version
            )));
        }
        state.find_baseline(None)?;
        Ok(Some(state))
    }

    /// Decides what the arms are measured against: `wanted` by its label, or what was named before,
    /// or else what [`baseline`] finds among all arms. Under a budget that goes by the baseline it
    /// stays what it was.
    pub fn find_baseline(&mut self, wanted: Option<&str>) -> Result<()> {
        let all: Vec<Arm> = self.arms.iter().map(ArmState::arm).collect::<Result<_>>()?;
        let is_fixed = self.budget != Budget::Tokens && !self.baseline.is_empty();
        if all.is_empty() || wanted.is_none() && (self.baseline_named || is_fixed) {
            return Ok(());
        }
        self.baseline.clone_from(&all[baseline(&all, wanted)?].label);
        self.baseline_named |= wanted.is_some();
        Ok(())
    }

    /// Writes it into the folder `out`.
    pub fn write(&self, out: &Path) -> Result<()> {
        let path = out.join(FILE);
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::internal(format!("cannot describe the comparison: {e}")))?;
        write_atomic(&path, |w| writeln!(w, "{text}").map_err(|e| Error::io("write", &path, e)))
    }

    /// The arm of that label.
    pub fn find(&mut self, label: &str) -> Option<&mut ArmState> {
        self.arms.iter_mut().find(|a| a.label == label)
    }
}
