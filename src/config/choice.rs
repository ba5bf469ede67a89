//! The words a run file may use where a key offers a choice.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A doc comment as messages and tables show it: without the space before it and the full stop
/// after it.
pub(super) const fn sentence(doc: &'static str) -> &'static str {
    let doc = doc.trim_ascii();
    match doc.as_bytes().split_last() {
        Some((b'.', _)) => doc.split_at(doc.len() - 1).0,
        _ => doc,
    }
}

/// An enum whose variants are written as fixed words: `Display`, `FromStr`, serde as that word,
/// `ALL`, `NAMES` and `MEANINGS`. A variant's doc comment is its meaning in the reference of keys.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident ($what:literal) {
        $($(#[doc = $meaning:literal])+ $variant:ident = $word:literal,)+
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[doc = $meaning])+ $variant,)+
        }

        impl $name {
            /// Every variant, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Every word, in the order of the variants.
            pub const NAMES: &'static [&'static str] = &[$($word),+];

            /// What each word means, in the same order.
            pub(crate) const MEANINGS: &'static [&'static str] = &[$(sentence(concat!($($meaning),+))),+];

            /// The word as run files write it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// What it stands for, in a sentence or two.
            pub fn meaning(self) -> &'static str {
                Self::MEANINGS[self as usize]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    other => Err(Error::usage(format!(
                        "expected a {}: {}; found \"{other}\"{}",
                        $what,
                        list(Self::NAMES),
                        did_you_mean(other, Self::NAMES.iter().copied()),
                    ))),
                }
            }
        }

        impl From<$name> for toml::Value {
            fn from(word: $name) -> Self {
                Self::String(word.name().to_string())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
                s.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

choice! {
    /// How the training loss is formed.
    Method ("method") {
        /// Every token counts: causal language modelling, selection off.
        Clm = "clm",
        /// Value-at-risk token selection (ESLM, arXiv 2505.19893).
        Eslm = "eslm",
    }
}

choice! {
    /// What ranks the tokens of a pool.
    Score ("score") {
        /// Entropy H(p) of the model's prediction (ESLM's VaR-entropy, arXiv 2505.19893).
        Entropy = "entropy",
        /// The model's negative log-likelihood of the target token (ESLM's CVaR-loss, arXiv
        /// 2505.19893).
        Loss = "loss",
        /// KL(teacher || model) at the objective's temperature.
        Kl = "kl",
        /// KL(model || teacher) at the objective's temperature.
        ReverseKl = "reverse-kl",
        /// Entropy of the model times KL(teacher || model), each normalised to [0, 1] in the pool
        /// (SE-KD, arXiv 2602.01395).
        EntropyKl = "entropy-kl",
        /// Entropy H(q) of the teacher's prediction.
        TeacherEntropy = "teacher-entropy",
        /// The model's negative log-likelihood of the target token less the teacher's (Rho-1, arXiv
        /// 2404.07965).
        Excess = "excess",
        /// Uniform draws of the run's own generator: the control at an equal keep ratio.
        Random = "random",
    }
}

/// A number that a scan of the output layer forms for each position, and that a score may be made
/// of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Statistic {
    /// -ln p(target).
    Nll,
    /// H(p).
    Entropy,
    /// -ln q(target).
    TeacherNll,
    /// H(q).
    TeacherEntropy,
    /// KL(q || p) at the objective's temperature.
    Kl,
    /// KL(p || q) at the objective's temperature: formed only where it is asked for.
    ReverseKl,
}

impl Score {
    /// The statistics that it is formed from; the formula itself is `select::score_of`.
    pub fn reads(self) -> &'static [Statistic] {
        match self {
            Self::Entropy => &[Statistic::Entropy],
            Self::Loss => &[Statistic::Nll],
            Self::Kl => &[Statistic::Kl],
            Self::ReverseKl => &[Statistic::ReverseKl],
            Self::EntropyKl => &[Statistic::Entropy, Statistic::Kl],
            Self::TeacherEntropy => &[Statistic::TeacherEntropy],
            Self::Excess => &[Statistic::Nll, Statistic::TeacherNll],
            Self::Random => &[],
        }
    }

    /// Whether the score reads the teacher's logits of every position.
    pub fn needs_teacher(self) -> bool {
        self.reads().iter().any(|s| !matches!(s, Statistic::Nll | Statistic::Entropy))
    }

    /// Whether the scan must form KL(p || q), which costs one more exponential per entry of the
    /// vocabulary.
    pub fn needs_reverse_kl(self) -> bool {
        self.reads().contains(&Statistic::ReverseKl)
    }
}

choice! {
    /// What ranks the sequences of a micro-batch for the early-exit filter.
    ProbeScore ("probe score") {
        /// Mean entropy of the early prediction.
        Entropy = "entropy",
        /// Mean negative log-likelihood of the targets under it.
        Loss = "loss",
        /// Uniform draws: the control at an equal keep ratio.
        Random = "random",
    }
}

impl ProbeScore {
    /// The token score whose mean it is.
    pub fn of_tokens(self) -> Score {
        match self {
            Self::Entropy => Score::Entropy,
            Self::Loss => Score::Loss,
            Self::Random => Score::Random,
        }
    }
}

choice! {
    /// The positions that share one threshold.
    Pool ("pool") {
        /// All positions of a micro-batch (the paper's batch): `micro_rows` becomes part of the
        /// mathematics.
        MicroBatch = "micro-batch",
        /// The positions of one sequence.
        Sequence = "sequence",
        /// All positions of an optimizer step, over micro-batches and processes (the paper's batch at
        /// scale): where a process has several micro-batches, scoring is a forward pass of its own.
        Step = "step",
        /// All positions, against a threshold estimated from earlier steps: scoring and gradient
        /// are one pass over the output layer.
        Carried = "carried",
    }
}

choice! {
    /// Which end of the ranking is kept.
    Tail ("tail") {
        /// The largest scores.
        High = "high",
        /// The smallest scores.
        Low = "low",
    }
}

choice! {
    /// How alpha moves once burn-in and ramp are over.
    AlphaSchedule ("schedule of alpha") {
        /// Not at all.
        Fixed = "fixed",
        /// Against the trend of the conditional value at risk, CVaR (Ada-ESLM, arXiv 2505.19893).
        AdaEslm = "ada-eslm",
        /// With the share of easy tokens, up to `select.alpha`: no more is dropped than is easy.
        EasyShare = "easy-share",
    }
}

choice! {
    /// Distance between teacher and student.
    Divergence ("divergence") {
        /// KL(teacher || student).
        ForwardKl = "forward-kl",
        /// KL(student || teacher).
        ReverseKl = "reverse-kl",
        /// Generalised Jensen-Shannon divergence; `objective.beta` is the teacher's share of the
        /// mixture.
        Jsd = "jsd",
        /// KL(teacher || mixture); `objective.skew` is the teacher's share of the mixture.
        SkewKl = "skew-kl",
        /// KL(student || mixture); `objective.skew` is the student's share of the mixture.
        SkewReverseKl = "skew-reverse-kl",
        /// Total variation: half the sum of absolute differences.
        Tv = "tv",
    }
}

choice! {
    /// Form of the teacher's output that the loss uses.
    Signal ("signal") {
        /// The whole distribution.
        Dense = "dense",
        /// The `objective.top_k` most likely entries, and the mass of the rest as one.
        TopK = "top-k",
        /// `objective.samples` draws from the distribution (Random Sampling KD, arXiv 2503.16870).
        Sampled = "sampled",
        /// What the signal in `data.signal` holds.
        Stored = "stored",
    }
}

choice! {
    /// How lambda and temperature move to their values at the end.
    ObjectiveSchedule ("schedule of the objective") {
        /// On a straight line.
        Linear = "linear",
        /// On half a cosine.
        Cosine = "cosine",
    }
}

choice! {
    /// Shape of the learning rate over the run, after the warm-up.
    ScheduleKind ("schedule") {
        /// The peak throughout.
        Constant = "constant",
        /// A straight line from the peak to the floor.
        Linear = "linear",
        /// Half a cosine from the peak to the floor.
        Cosine = "cosine",
        /// Warm-up, stable, decay: the peak, then a straight line to the floor over the last share
        /// of the steps.
        Wsd = "wsd",
    }
}

choice! {
    /// What happens to the logits between scoring and the backward pass. Same numbers, other cost.
    /// Where nothing is selected (and no position is drawn) there is no between: a block of
    /// positions is scored and differentiated at once.
    HeadMode ("head mode") {
        /// Keep them: where a share k of the positions is kept, (1 + 2k) times the products of one
        /// forward pass of the output layer, and memory for micro-batch x vocabulary.
        Keep = "keep",
        /// Drop them and compute those of the kept positions again: (1 + 3k) times these products,
        /// and no such memory.
        Recompute = "recompute",
        /// `keep` where a micro-batch's logits are small enough, else `recompute`.
        Auto = "auto",
    }
}

choice! {
    /// What happens to the activations between forward and backward. Same bits (but for rounding in
    /// the first blocks where the early-exit filter drops sequences), other cost.
    Activations ("activations mode") {
        /// Keep what the backward needs of every block.
        Keep = "keep",
        /// Keep each block's input and run the block again in the backward: a fifth of the memory
        /// at 12 blocks for 15 % more work (Chen et al. 2016, arXiv 1604.06174).
        Recompute = "recompute",
    }
}

choice! {
    /// Which positions carry gradient through the blocks.
    BackwardMode ("backward mode") {
        /// All positions whose gradient can differ from zero.
        Exact = "exact",
        /// Every position: the same results, slower; kept to check `exact`.
        Dense = "dense",
        /// The kept positions alone, in every block: another gradient, biased.
        Sparse = "sparse",
        /// Positions drawn at random by gradient norm, at the output layer, at every block and at
        /// its keys and values: another gradient, unbiased.
        Sampled = "sampled",
    }
}

choice! {
    /// Number format of what is multiplied in the matrix products of the transformer body and the
    /// output layer, or in which it is stored. All else is f32.
    Dtype ("dtype") {
        /// 32-bit floats.
        F32 = "f32",
        /// Rounded to bf16 and summed in f32: in products on a CPU with AVX512-BF16 or a GPU, in
        /// storage anywhere.
        Bf16 = "bf16",
    }
}

choice! {
    /// What becomes of a step with a loss, gradient or score that is not finite. Nothing of it
    /// enters the parameters.
    OnNonfinite ("on_nonfinite") {
        /// The run ends, with exit status 5.
        Stop = "stop",
        /// The run goes on with the next batch, up to `optim.max_skips` times.
        Skip = "skip",
    }
}

choice! {
    /// Where a student's first weights come from.
    Init ("initialisation") {
        /// Random weights, as the family begins; GPT-2 with residual scaling.
        Scratch = "scratch",
        /// Chosen layers of the teacher.
        TeacherLayers = "teacher-layers",
        /// The weights stored with the student.
        Checkpoint = "checkpoint",
    }
}

/// The device a run asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceSpec {
    /// The first CUDA device if this build and this machine have one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA device of that index.
    Cuda(usize),
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Cpu => f.pad("cpu"),
            Self::Cuda(i) => f.pad(&format!("cuda:{i}")),
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            other => match other.strip_prefix("cuda:").and_then(|i| i.parse().ok()) {
                Some(index) => Ok(Self::Cuda(index)),
                None if matches!(other.to_lowercase().as_str(), "gpu" | "nvidia") => {
                    Err(Error::usage(format!(
                        "expected a device: \"auto\", \"cpu\", \"cuda\" or \"cuda:INDEX\"; found \"{other}\"; a GPU is \"cuda\""
                    )))
                }
                None => Err(Error::usage(format!(
                    "expected a device: \"auto\", \"cpu\", \"cuda\" or \"cuda:INDEX\"; found \"{other}\""
                ))),
            },
        }
    }
}

impl serde::Serialize for DeviceSpec {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for DeviceSpec {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Sequences per micro-batch: `"auto"` or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MicroRows {
    /// As many as the memory plan allows.
    Auto,
    /// Exactly so many.
    Rows(usize),
}

impl fmt::Display for MicroRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Rows(n) => f.pad(&n.to_string()),
        }
    }
}

impl serde::Serialize for MicroRows {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Auto => s.serialize_str("auto"),
            Self::Rows(n) => s.serialize_u64(*n as u64),
        }
    }
}

impl<'de> serde::Deserialize<'de> for MicroRows {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Written {
            Word(String),
            Number(usize),
        }
        match Written::deserialize(d)? {
            Written::Word(word) if word == "auto" => Ok(Self::Auto),
            Written::Number(n) if n > 0 => Ok(Self::Rows(n)),
            _ => Err(serde::de::Error::custom(
                "micro_rows must be \"auto\" or a whole number of at least 1",
            )),
        }
    }
}

/// Positions that a sampled backward keeps at the output layer, at each block and at its keys and
/// values: `"auto"` or a share of all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rho {
    /// As few as `machine.added_variance` allows.
    Auto,
    /// A share in (0, 1].
    Share(f64),
}

impl serde::Serialize for Rho {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Auto => s.serialize_str("auto"),
            Self::Share(share) => s.serialize_f64(*share),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Rho {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Written {
            Word(String),
            Number(f64),
        }
        match Written::deserialize(d)? {
            Written::Word(word) if word == "auto" => Ok(Self::Auto),
            Written::Number(share) if share > 0.0 && share <= 1.0 => Ok(Self::Share(share)),
            _ => Err(serde::de::Error::custom("rho must be \"auto\" or a number in (0, 1]")),
        }
    }
}

/// `"a", "b" or "c"`.
pub(crate) fn list(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => format!("\"{only}\""),
        [rest @ .., last] => {
            let rest: Vec<String> = rest.iter().map(|w| format!("\"{w}\"")).collect();
            format!("{} or \"{last}\"", rest.join(", "))
        }
    }
}

/// `; did you mean "x"?`, or nothing where no candidate is close.
pub(crate) fn did_you_mean<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    match nearest(word, candidates) {
        Some(best) => format!("; did you mean \"{best}\"?"),
        None => String::new(),
    }
}

/// Longest word that is still looked up.
const MOST_MISSPELT: usize = 256;

/// Whether `short` begins as `word` does and has letters of it alone, in their order.
fn is_short_for(short: &str, word: &str) -> bool {
    let mut rest = word.chars();
    short.chars().next() == word.chars().next() && short.chars().all(|c| rest.any(|w| w == c))
}

/// The candidate closest to `word`, if it is close enough to be what was meant. A dotted candidate
/// is also compared by its last part, so that a key in the wrong section is found.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    // The distance takes time and memory by the product of the lengths, and no name is this long.
    if word.len() > MOST_MISSPELT {
        return None;
    }
    let word = &*word.to_lowercase();
    let parts = |w: &'a str| w.rsplit_once('.').unwrap_or(("", w));
    let (section, bare) = word.rsplit_once('.').unwrap_or(("", word));
    let candidates: Vec<&str> = candidates.collect();
    let of_few_edits = (candidates.iter().copied())
        .map(|c| {
            let (of, last) = parts(c);
            let within = strsim::damerau_levenshtein(bare, last);
            // The wrong section costs one edit: a typo within the right section wins.
            let distance = within + strsim::damerau_levenshtein(section, of).min(1);
            (distance, within <= 1 + last.len().min(bare.len()) / 4, c)
        })
        .filter(|(distance, near, c)| *near && *distance <= 1 + c.len().min(word.len()) / 4)
        .min_by_key(|(distance, ..)| *distance)
        .map(|(.., c)| c);
    // `ctx` for `context`.
    of_few_edits.or_else(|| {
        candidates.into_iter().find(|c| {
            let (of, last) = parts(c);
            of == section && bare.len() > 2 && is_short_for(bare, last)
        })
    })
}
