//! A position as it was given becomes one of a signal.

use super::record::{Entry, Position};
use crate::loss::{Said, TopK};
use half::f16;

/// What numbers that a server rounded may lie above 0.
const ABOVE: f64 = 1e-3;
/// What probabilities that it rounded may sum to.
const MOST_SUM: f64 = 1.01;

/// What a position must be of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// The token that follows in the data.
    pub(super) target: u32,
    /// Entries.
    pub(super) k: usize,
    /// Ids that may be named.
    pub(super) vocab: u32,
}

/// How many entries a server was asked for, from a first prompt. Where a token of the prompt is not
/// among the largest, vLLM adds it: such a position has one entry more. Its rank tells whether that
/// is so of the first; without ranks, a position with one less does, or that the prompt's own token
/// is the least everywhere.
pub(super) fn k_of(said: &[Option<Vec<Entry>>], tokens: &[u32]) -> usize {
    let positions = || said.iter().zip(tokens).filter_map(|(e, own)| Some((e.as_ref()?, *own)));
    let Some((first, own)) = positions().next() else { return 0 };
    let less = first.len().saturating_sub(1);
    let find = |entries: &[Entry], own: u32| entries.iter().find(|e| e.id == own).copied();
    let Some(of_first) = find(first, own) else { return first.len() };
    let least = |(entries, own): (&Vec<Entry>, u32)| {
        let own = find(entries, own);
        own.is_some_and(|own| entries.iter().all(|e| e.logprob >= own.logprob))
    };
    let fewer = positions().any(|(entries, _)| entries.len() == less);
    let unranked = of_first.rank.is_none() && positions().all(least);
    if is_added(&of_first, first.len()) || fewer || unranked { less } else { first.len() }
}

/// Whether the prompt's own token is one of `n` entries only because it is the prompt's.
fn is_added(own: &Entry, n: usize) -> bool {
    own.rank.is_some_and(|rank| rank > n as u64)
}

/// The `k` largest entries, the NLL of the target, and the entropy of these entries and the rest as
/// one: a lower bound of the teacher's. One row. Errs with what is wrong.
pub(super) fn reduced(position: Position, asked: Asked) -> Result<TopK, String> {
    let Position { mut entries, target: given, .. } = position;
    let Asked { target, k, vocab } = asked;
    check(&mut entries, vocab)?;
    let n = entries.len();
    let sum: f64 = entries.iter().map(|e| e.logprob.exp()).sum();
    if sum > MOST_SUM {
        return Err(format!(
            "its probabilities sum to {sum:.4}; expected at most 1: are these logits, or log-probabilities at another \
             temperature?"
        ));
    }
    if let Some(logprob) = given.filter(|l| !is_logprob(*l)) {
        return Err(wrong(logprob, "the target"));
    }
    let own = entries.iter().find(|e| e.id == target).copied();
    // Where nothing is said of the target it is somewhere in the rest, which a signal never takes for
    // less than its least level; where there is none, NaN is not the maximum.
    let of_rest = || (1.0 - sum).ln().max(TopK::logp_of(1).into());
    let target_logprob = given.or(own.map(|e| e.logprob)).unwrap_or_else(of_rest);
    if let Some(own) = own.filter(|own| is_added(own, n)) {
        entries.retain(|e| e.id != own.id);
    }
    if entries.len() < k {
        let without = if entries.len() < n { " without the prompt's own token" } else { "" };
        return Err(format!(
            "names {} ids{without}; expected at least {k}: ask the server for more, or take fewer with --top-k {}",
            entries.len(),
            entries.len().max(1)
        ));
    }
    // The largest first, of equal ones the lower id.
    entries.sort_by(|a, b| b.logprob.total_cmp(&a.logprob).then(a.id.cmp(&b.id)));
    entries.truncate(k);
    entries.sort_unstable_by_key(|e| e.id);
    let entropy = entropy(&entries, k == vocab as usize);
    let rounded = |x: f64| f16::from_f64(x.clamp(0.0, f16::MAX.to_f64())).to_f32();
    let (nll, entropy) = (rounded(-target_logprob), rounded(entropy));
    Ok(TopK {
        k,
        ids: entries.iter().map(|e| e.id).collect(),
        logp: entries.iter().map(|e| e.logprob as f32).collect(),
        rest: vec![of_rest() as f32],
        said: vec![Said { nll, entropy, entropy_tau: entropy }],
    })
}

/// Sorts entries by id. Errs with what no log-probabilities of a vocabulary are.
fn check(entries: &mut [Entry], vocab: u32) -> Result<(), String> {
    entries.sort_unstable_by_key(|e| e.id);
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(format!("names id {} twice; expected each id once", pair[0].id));
    }
    if let Some(outside) = entries.last().filter(|e| e.id >= vocab) {
        return Err(format!(
            "names id {}, outside the vocabulary of {vocab}; if the teacher has more ids than the data's tokenizer, say how \
             many with --vocab-size",
            outside.id
        ));
    }
    match entries.iter().find(|e| !is_logprob(e.logprob)) {
        Some(e) => Err(wrong(e.logprob, &format!("id {}", e.id))),
        None => Ok(()),
    }
}

fn is_logprob(x: f64) -> bool {
    x <= ABOVE // which no NaN is
}

fn wrong(found: f64, of: &str) -> String {
    let logits = if found.is_finite() { ": are these logits?" } else { "" };
    format!(
        "the log-probability of {of} is {found}; expected a number of at most 0, or -inf{logits}"
    )
}

/// Of these entries and the rest as one, in nats; `whole` says that there is no rest.
fn entropy(entries: &[Entry], whole: bool) -> f64 {
    let of = |q: f64| if q > 0.0 { -q * q.ln() } else { 0.0 };
    let sum: f64 = entries.iter().map(|e| e.logprob.exp()).sum();
    let rest = if whole { 0.0 } else { 1.0 - sum };
    let inside: f64 = entries.iter().map(|e| of(e.logprob.exp())).sum();
    (inside + of(rest)).max(0.0)
}
