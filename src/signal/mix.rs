//! Several signals heard as one: the mixture of what their teachers say, by weight.
//!
//! A mix is a folder with `mix.json`, which names the parts; no signal is copied, and rows are mixed
//! as they are read. With q_i of part i and weights w_i that sum to 1, a student learns from
//! `q = sum w_i q_i`: the gradient of KL(q || p) is that of `sum w_i KL(q_i || p)`, of which the two
//! differ by a number that no student changes.

use super::header::{Header, Kind, Shard, TeacherId};
use super::stored::{Part, Stored};
use crate::error::{Error, Result};
use crate::files::{Contents, OutDir, hex, read_bounded, write_atomic};
use crate::loss::{DrawnId, Said, Sampled, Signal, TopK};
use crate::report::text::decimal;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Component, Path, PathBuf};

/// The file of a mix.
const FILE: &str = "mix.json";
const FORMAT: &str = "eslm-kd signal mix";
const VERSION: u32 = 1;
/// Far above any.
const MOST_BYTES: u64 = 1 << 20;
/// The least share of a part: weights of draws are whole numbers of 32,768ths at worst.
const LEAST_SHARE: f64 = 1e-4;

/// What `mix.json` holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MixFile {
    format: String,
    version: u32,
    parts: Vec<MixedPart>,
}

/// A part of a mix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixedPart {
    /// Its folder, from that of the mix; absolute where the two share none but the root.
    pub signal: PathBuf,
    /// Its weight; those of all parts sum to 1.
    pub weight: f64,
    /// What it is, wherever it lies.
    pub hash: String,
}

/// What `signal mix` made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mixed {
    /// The folder.
    pub signal: PathBuf,
    /// What it is of.
    pub header: Header,
    /// What it is, wherever it and its parts lie.
    pub hash: String,
    /// What is mixed.
    pub parts: Vec<MixedPart>,
}

const CONTENTS: Contents =
    Contents { verb: "signal mix", names: &[FILE], mark: Some((FILE, FORMAT)), last: FILE };

/// Writes a mix of these signals, each with a positive weight, of which the share in the sum counts.
/// Replaces an earlier mix in the folder `out`. Errs where the signals do not belong together.
pub fn mix(signals: &[(PathBuf, f64)], out: &Path) -> Result<Mixed> {
    let place = OutDir::create(out, CONTENTS)?;
    let weights = shares(signals.iter().map(|(dir, weight)| (&**dir, *weight)))?;
    let parts = signals.iter().map(|(dir, _)| Part::open(refuse_mix(dir)?));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    let home = real(out)?;
    let named = |(part, weight): (&Part, &f64)| {
        let signal = from(&home, &real(part.dir())?);
        Ok(MixedPart { signal, weight: *weight, hash: part.hash() })
    };
    let named = parts.iter().zip(&weights).map(named).collect::<Result<Vec<_>>>()?;
    joined(out, parts, weights)?;
    // A run that learned from it could not go on with other weights.
    if is_mix(out)
        && let Ok(there) = parts_of(out)
    {
        // Weights that were divided by their sum are divided again where they are read.
        let equal = |(a, b): (&MixedPart, &MixedPart)| {
            a.hash == b.hash && (a.weight - b.weight).abs() < 1e-9
        };
        if there.len() != named.len() || !there.iter().zip(&named).all(equal) {
            let there = there.iter().map(|p| format!("{}={}", p.signal.display(), p.weight));
            return Err(Error::usage(format!(
                "{}: holds another mix ({}); choose another --out, or remove it",
                out.display(),
                there.collect::<Vec<_>>().join(" ")
            )));
        }
    }
    let file = MixFile { format: FORMAT.into(), version: VERSION, parts: named };
    let failed = |e| Error::usage(format!("{}: cannot be described: {e}", out.display()));
    let text = serde_json::to_string_pretty(&file).map_err(failed)? + "\n";
    let path = place.path().join(FILE);
    write_atomic(&path, |to| {
        to.write_all(text.as_bytes()).map_err(|e| Error::io("write", &path, e))
    })?;
    place.commit()?;
    let made = open(out)?;
    let (header, hash) = (made.header().clone(), made.hash().to_string());
    Ok(Mixed { signal: out.to_path_buf(), header, hash, parts: file.parts })
}

/// Whether a folder holds a mix.
pub(super) fn is_mix(dir: &Path) -> bool {
    dir.join(FILE).is_file()
}

/// A mix of mixes says no more than one of their parts.
fn refuse_mix(dir: &Path) -> Result<&Path> {
    if !is_mix(dir) {
        return Ok(dir);
    }
    let parts = parts_of(dir)?.into_iter();
    let parts: Vec<String> =
        parts.map(|part| format!("{}={}", part.signal.display(), part.weight)).collect();
    Err(Error::usage(format!(
        "{}: expected a signal that was written, found a mix; name its parts in its place: {}",
        dir.display(),
        parts.join(" ")
    )))
}

/// Weights that sum to 1.
fn shares<'a>(weights: impl Iterator<Item = (&'a Path, f64)> + Clone) -> Result<Vec<f64>> {
    let (count, sum) = weights.clone().fold((0, 0.0), |(n, sum), (_, w)| (n + 1, sum + w));
    if count < 2 {
        return Err(Error::usage(format!("expected two signals or more to mix, found {count}")));
    }
    let share = |(dir, weight): (&Path, f64)| match weight / sum {
        share if weight > 0.0 && share >= LEAST_SHARE => Ok(share),
        _ => Err(Error::usage(format!(
            "{}: expected a positive weight that is at least {LEAST_SHARE} of the sum of all, found {weight}; leave out what \
             weighs nothing",
            dir.display()
        ))),
    };
    weights.map(share).collect()
}

/// Where a folder is, once links are followed; it may not be there yet.
fn real(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).map_err(|e| Error::io("find", path, e))?;
    match absolute.canonicalize() {
        Ok(real) => Ok(real),
        Err(e) => match (absolute.parent(), absolute.file_name()) {
            (Some(above), Some(name)) => Ok(real(above)?.join(name)),
            _ => Err(Error::io("find", path, e)),
        },
    }
}

/// `path` as seen from the folder `home`, so that both can move together; absolute where they share
/// no folder but the root.
fn from(home: &Path, path: &Path) -> PathBuf {
    let (mut above, mut below) = (home.components().peekable(), path.components().peekable());
    let mut shares_a_folder = false;
    while above.peek().is_some() && above.peek() == below.peek() {
        shares_a_folder |= matches!(above.next(), Some(Component::Normal(_)));
        below.next();
    }
    if !shares_a_folder {
        return path.to_path_buf();
    }
    above.map(|_| Component::ParentDir).chain(below).collect()
}

/// Where `path`, as seen from the folder `home`, is from here: without `home/..`, unless that leads
/// elsewhere because `home` is a link.
fn found_at(home: &Path, path: &Path) -> PathBuf {
    let mut at = home.to_path_buf();
    for part in path.components() {
        match part {
            Component::ParentDir if at.file_name().is_some() && !at.is_symlink() => drop(at.pop()),
            part => at.push(part),
        }
    }
    if at.as_os_str().is_empty() { PathBuf::from(".") } else { at }
}

/// The parts that `mix.json` names, their folders as they are found from here and their weights as
/// shares.
pub(super) fn parts_of(dir: &Path) -> Result<Vec<MixedPart>> {
    let path = dir.join(FILE);
    let again = "; mix the signals again: eslm-kd signal mix";
    let wrong = |what: String| Error::data(format!("{}: {what}{again}", path.display()));
    let bytes = read_bounded(&path, MOST_BYTES)?;
    let file: MixFile = serde_json::from_slice(&bytes).map_err(|e| {
        wrong(format!("expected a mix of signals as this build knows it, found {e}"))
    })?;
    if (&*file.format, file.version) != (FORMAT, VERSION) {
        return Err(wrong(format!(
            "expected {FORMAT:?} of version {VERSION}, found {:?} of version {}",
            file.format, file.version
        )));
    }
    let weights = shares(file.parts.iter().map(|part| (&*part.signal, part.weight)));
    let weights = weights.map_err(|e| wrong(e.to_string()))?;
    let found = |(part, weight): (MixedPart, f64)| MixedPart {
        signal: found_at(dir, &part.signal),
        weight,
        ..part
    };
    Ok(file.parts.into_iter().zip(weights).map(found).collect())
}

/// Opens a mix and all of its parts.
pub(super) fn open(dir: &Path) -> Result<Stored> {
    let named = parts_of(dir)?;
    let in_mix = |e: Error| e.context(format!("{}: a part of this mix", dir.display()));
    let parts = named.iter().map(opened).collect::<Result<Vec<_>>>().map_err(in_mix)?;
    let weights = named.iter().map(|part| part.weight).collect();
    joined(dir, parts, weights).map_err(|e| e.context(dir.display()))
}

/// A part as it was mixed.
fn opened(named: &MixedPart) -> Result<Part> {
    let dir = &named.signal;
    let wrong = |what: String| Error::data(format!("{}: {what}", dir.display()));
    if !dir.exists() {
        return Err(wrong("is gone; put it back, or mix again: eslm-kd signal mix".into()));
    }
    let found = Part::open(refuse_mix(dir)?)?;
    match found.hash() {
        hash if hash == named.hash => Ok(found),
        hash => Err(wrong(format!(
            "expected the signal that was mixed, found another (SHA-256 {} before, {hash} now); put that one back, or mix \
             again: eslm-kd signal mix",
            named.hash
        ))),
    }
}

/// Signals as one. Errs where they do not belong together.
fn joined(dir: &Path, parts: Vec<Part>, weights: Vec<f64>) -> Result<Stored> {
    let first = &parts[0];
    for other in &parts[1..] {
        let mut clashes = other.header().clashes(first.header());
        if clashes.is_empty() && common(&[first, other]).is_none() {
            let [a, b] = [other, first].map(|part| part.header().signal.to_string());
            clashes.push(format!("draws, of which no planes end together: {a} and {b}"));
        }
        if !clashes.is_empty() {
            return Err(Error::data(format!(
                "{} and {} cannot be mixed ({}); write both of the same data, kind, temperature and windows",
                other.dir().display(),
                first.dir().display(),
                clashes.join("; ")
            )));
        }
    }
    let all: Vec<&Part> = parts.iter().collect();
    let Some(signal) = common(&all) else {
        let dir = dir.display();
        return Err(Error::data(format!("{dir}: of no number of draws do all parts end a plane")));
    };
    let hash = hash_of(parts.iter().map(Part::hash).zip(&weights));
    let names = parts.iter().zip(&weights).map(|(part, weight)| {
        let digits = decimal(*weight, 4);
        let digits = digits.trim_end_matches('0').trim_end_matches('.');
        format!("{digits} {}", part.header().teacher.name)
    });
    let name = names.collect::<Vec<_>>().join(" + ");
    let teacher = TeacherId { name, weights: None, function: None, revision: None, dtype: None };
    let first = parts[0].header();
    let vocab_size = parts.iter().map(|part| part.header().vocab_size).max();
    let vocab_size = vocab_size.unwrap_or(first.vocab_size);
    let header = Header { teacher, vocab_size, signal, ..first.for_shard(Shard::ALL) };
    let draws = header.signal.planes().iter().sum();
    let parts = parts.into_iter().map(|part| match &header.signal {
        Kind::Sampled { .. } => part.with_draws(draws),
        Kind::TopK { .. } | Kind::Scores => Ok(part),
    });
    let parts = parts.collect::<Result<Vec<_>>>()?;
    Ok(Stored::mixed(dir, parts, Mixture { header, weights }, hash))
}

/// What all of these parts, of one kind, hold: the planes that end together; of largest entries as
/// many as the part that has most. None where no plane ends in all.
fn common(parts: &[&Part]) -> Option<Kind> {
    let kinds = || parts.iter().map(|part| &part.header().signal);
    match kinds().next()? {
        Kind::Sampled { seed, temperature, .. } => {
            let mut ends = parts[0].header().signal.sums();
            ends.retain(|end| kinds().all(|kind| kind.sums().contains(end)));
            let before = std::iter::once(&0).chain(&ends);
            let planes: Vec<u32> = ends.iter().zip(before).map(|(end, from)| end - from).collect();
            let (seed, temperature) = (*seed, *temperature);
            (!planes.is_empty()).then_some(Kind::Sampled { planes, seed, temperature })
        }
        Kind::TopK { temperature, .. } => {
            let entries = |part: &&Part| match part.header().signal {
                Kind::TopK { k, .. } => (k, part.header().vocab_size),
                Kind::Sampled { .. } | Kind::Scores => (0, 0),
            };
            let all: Vec<(u32, u32)> = parts.iter().map(entries).collect();
            let most = all.iter().map(|e| e.0).max()?;
            let vocab = all.iter().map(|e| e.1).max()?;
            // A rest needs an id that it is of.
            let has_rest = all.iter().any(|(k, vocab)| k < vocab);
            let k = if has_rest { most.min(vocab - 1) } else { most };
            Some(Kind::TopK { k, temperature: *temperature })
        }
        Kind::Scores => Some(Kind::Scores),
    }
}

/// SHA-256 of the weights (f64, little-endian), each before its part's hash.
fn hash_of<'a>(parts: impl Iterator<Item = (String, &'a f64)>) -> String {
    let mut hasher = Sha256::new();
    for (hash, weight) in parts {
        hasher.update(weight.to_le_bytes());
        hasher.update(hash.as_bytes());
    }
    hex(&hasher.finalize())
}

/// How rows of parts are mixed.
#[derive(Debug)]
pub(super) struct Mixture {
    /// What the mixture is of.
    pub(super) header: Header,
    /// Of each part; they sum to 1.
    pub(super) weights: Vec<f64>,
}

impl Mixture {
    /// What is said beside the signals of each row, by part: the loss on the target is the mixture's.
    /// Entropies are the parts' mean, never more than the mixture's: with it a divergence to draws
    /// is the mean of those to the parts.
    pub(super) fn said(&self, parts: &[Vec<Said>]) -> Vec<Said> {
        let weighed = |i: usize| parts.iter().map(move |part| part[i]).zip(&self.weights);
        let mean = |i: usize, of: fn(Said) -> f32| {
            weighed(i).map(|(said, w)| w * f64::from(of(said))).sum::<f64>() as f32
        };
        let rows = 0..parts.first().map_or(0, Vec::len);
        let mixed = rows.map(|i| {
            let least = weighed(i).map(|(said, _)| said.nll).fold(f32::INFINITY, f32::min);
            // Relative to the least: no teacher is so surprised that its share vanishes for all.
            let share = |(said, w): (Said, &f64)| w * f64::from(least - said.nll).exp();
            let nll = match least.is_finite() {
                true => f64::from(least) - weighed(i).map(share).sum::<f64>().ln(),
                false => f64::from(least),
            };
            let (entropy, entropy_tau) = (mean(i, |s| s.entropy), mean(i, |s| s.entropy_tau));
            Said { nll: nll as f32, entropy, entropy_tau }.rounded()
        });
        mixed.collect()
    }

    /// The mixture of the same rows of all parts.
    pub(super) fn signal(&self, parts: &[Signal]) -> Result<Signal> {
        let other = || Error::internal("signals of several kinds cannot be mixed");
        if let Kind::TopK { k, .. } = self.header.signal {
            let tops = parts.iter().map(|part| match part {
                Signal::TopK(top) => Ok(top),
                Signal::Dense(_) | Signal::Sampled(_) => Err(other()),
            });
            return self.top(&tops.collect::<Result<Vec<_>>>()?, k as usize).map(Signal::TopK);
        }
        let sampled = parts.iter().map(|part| match part {
            Signal::Sampled(sampled) => Ok(sampled),
            Signal::Dense(_) | Signal::TopK(_) => Err(other()),
        });
        Ok(Signal::Sampled(self.draws(&sampled.collect::<Result<Vec<_>>>()?)))
    }

    /// Draws of each part count as often as it weighs: in whole numbers, whose sum is a power of two,
    /// so that a mixture of a signal with itself has its shares to the bit. All parts have as many
    /// draws, at most 2^16, and their product with that sum is at most 2^31.
    fn draws(&self, parts: &[&Sampled]) -> Sampled {
        let draws = parts[0].draws;
        let said = self.said(&parts.iter().map(|part| part.said.clone()).collect::<Vec<_>>());
        let total = 1 << (31 - draws.next_power_of_two().trailing_zeros());
        let times = whole(&self.weights, total);
        let (mut starts, mut drawn): (_, Vec<DrawnId>) = (vec![0], Vec::new());
        for i in 0..said.len() {
            let from = drawn.len();
            for (part, times) in parts.iter().zip(&times) {
                let more =
                    |d: &DrawnId| DrawnId { id: d.id, count: d.count.saturating_mul(*times) };
                drawn.extend(part.row(i).iter().map(more));
            }
            drawn[from..].sort_unstable_by_key(|d| d.id);
            let mut end = from;
            for next in from..drawn.len() {
                if end > from && drawn[end - 1].id == drawn[next].id {
                    drawn[end - 1].count = drawn[end - 1].count.saturating_add(drawn[next].count);
                } else {
                    drawn[end] = drawn[next];
                    end += 1;
                }
            }
            drawn.truncate(end);
            starts.push(end);
        }
        Sampled { draws: draws * total, starts, drawn, said }
    }

    /// The `k` largest entries of the mixture, of those that any part names (of equal ones the lower
    /// ids). What a part does not name lies in its rest, and so does what is cut off.
    fn top(&self, parts: &[&TopK], k: usize) -> Result<TopK> {
        let said = self.said(&parts.iter().map(|part| part.said.clone()).collect::<Vec<_>>());
        let n = said.len();
        let (mut ids, mut logp) = (Vec::with_capacity(n * k), Vec::with_capacity(n * k));
        let (mut rests, mut named) = (Vec::with_capacity(n), Vec::new());
        for i in 0..n {
            named.clear();
            let mut rest = 0.0;
            for (part, w) in parts.iter().zip(&self.weights) {
                let of_row = i * part.k..(i + 1) * part.k;
                let mass = |logp: &f32| w * f64::from(*logp).exp();
                let entries = part.ids[of_row.clone()].iter().zip(&part.logp[of_row]);
                named.extend(entries.map(|(id, logp)| (*id, mass(logp))));
                rest += mass(&part.rest[i]);
            }
            named.sort_by_key(|(id, _)| *id); // stable: masses are added in the order of the parts
            named.dedup_by(|next, kept| {
                let same = next.0 == kept.0;
                kept.1 += if same { next.1 } else { 0.0 };
                same
            });
            if named.len() > k {
                named.sort_by(|a, b| b.1.total_cmp(&a.1)); // stable: the lower id first
                rest += named[k..].iter().map(|(_, mass)| mass).sum::<f64>();
                named.truncate(k);
                named.sort_unstable_by_key(|(id, _)| *id);
            }
            if named.len() < k {
                return Err(Error::internal("a part of a mix names an id twice"));
            }
            ids.extend(named.iter().map(|(id, _)| *id));
            logp.extend(named.iter().map(|(_, mass)| mass.ln() as f32));
            rests.push(rest.ln() as f32);
        }
        Ok(TopK { k, ids, logp, rest: rests, said })
    }
}

/// Weights in whole numbers that sum to `total`, by rounding where each part ends.
fn whole(weights: &[f64], total: u32) -> Vec<u32> {
    let (mut sum, mut from) = (0.0, 0);
    let mut times: Vec<u32> = Vec::with_capacity(weights.len());
    for (i, weight) in weights.iter().enumerate() {
        sum += weight;
        let last = i + 1 == weights.len();
        let end = if last { total } else { (sum * f64::from(total)).round() as u32 };
        times.push(end.saturating_sub(from));
        from = end;
    }
    times
}
