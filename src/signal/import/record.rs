//! What a line or a row says: a sequence as vLLM answers, or a position by itself.

use crate::data::source::Table;
use crate::error::{self, Result};
use crate::json;
use parquet::record::{Field, Row};
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Unexpected, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// An id and what is said of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Entry {
    pub(super) id: u32,
    /// ln q, as it was given.
    pub(super) logprob: f64,
    /// Its place among all ids by probability, from 1, where it is known.
    pub(super) rank: Option<u64>,
}

/// What is said of every token of a prompt.
#[derive(Debug, PartialEq)]
pub(super) struct Sequence {
    pub(super) tokens: Vec<u32>,
    /// Entry i speaks of token i, given those before it; nothing is said of the first.
    pub(super) said: Vec<Option<Vec<Entry>>>,
}

/// What is said of one position.
#[derive(Debug, PartialEq)]
pub(super) struct Position {
    pub(super) number: Option<u64>,
    pub(super) entries: Vec<Entry>,
    /// ln q of the token that follows.
    pub(super) target: Option<f64>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Record {
    Sequence(Sequence),
    Position(Position),
}

/// The columns of a position in Parquet.
pub(super) const COLUMNS: [&str; 5] =
    ["ids", "token_ids", "logprobs", "position", "target_logprob"];

const FORMS: &str =
    "prompt_token_ids with prompt_logprobs (also in choices[0]), or ids with logprobs";
/// Most fields that an error names.
const MOST_FIELDS: usize = 12;

/// Both forms and what stands around them.
#[derive(Debug, Deserialize)]
struct Line {
    prompt_token_ids: Option<Vec<u32>>,
    prompt_logprobs: Option<Vec<Option<Entries>>>,
    choices: Option<Vec<Choice>>,
    #[serde(alias = "token_ids")]
    ids: Option<Vec<u32>>,
    logprobs: Option<Vec<LogProb>>,
    position: Option<u64>,
    target_logprob: Option<LogProb>,
}

/// An answer of an OpenAI-compatible server.
#[derive(Debug, Deserialize)]
struct Choice {
    prompt_token_ids: Option<Vec<u32>>,
    prompt_logprobs: Option<Vec<Option<Entries>>>,
}

/// What a line of JSON says. Errs with what is wrong with it.
pub(super) fn of_line(line: &[u8]) -> std::result::Result<Record, String> {
    let parsed = serde_json::from_slice::<Line>(line).or_else(|e| {
        let constants = |name: &str| match name {
            "-Infinity" => "\"-inf\"",
            "Infinity" => "\"inf\"",
            _ => "\"nan\"",
        };
        let plain = json::replaced_constants(line, constants);
        plain.map_or(Err(e), |plain| serde_json::from_slice(&plain))
    });
    let line_of_file = parsed.map_err(|e| {
        let what = e.to_string();
        let what = what.split(" at line ").next().unwrap_or(&what);
        format!("{what} (column {})", e.column())
    })?;
    record(line_of_file, line)
}

fn record(of: Line, line: &[u8]) -> std::result::Result<Record, String> {
    let Line { mut prompt_token_ids, mut prompt_logprobs, choices, ids, logprobs, .. } = of;
    if prompt_logprobs.is_none() {
        let mut choices = choices.unwrap_or_default();
        if choices.len() > 1 {
            return Err(format!(
                "has {} choices; expected one: a window each line, so one prompt each request, with n = 1",
                choices.len()
            ));
        }
        if let Some(Choice { prompt_token_ids: tokens, prompt_logprobs: said }) = choices.pop() {
            prompt_logprobs = said;
            prompt_token_ids = prompt_token_ids.or(tokens);
        }
    }
    match (prompt_token_ids, prompt_logprobs, ids, logprobs) {
        (Some(tokens), Some(said), ..) => {
            let said = said.into_iter().map(|of_token| of_token.map(|Entries(e)| e)).collect();
            Ok(Record::Sequence(Sequence { tokens, said }))
        }
        (None, Some(_), ..) => Err(
            "has prompt_logprobs without prompt_token_ids, by which it is known what they are of; ask vLLM's server for them \
             with \"return_token_ids\": true, or write the ids that were sent beside them"
                .into(),
        ),
        (_, None, Some(ids), Some(logprobs)) => {
            let logprobs: Vec<f64> = logprobs.iter().map(|l| l.logprob).collect();
            let entries = entries(&ids, &logprobs)?;
            let target = of.target_logprob.map(|l| l.logprob);
            Ok(Record::Position(Position { number: of.position, entries, target }))
        }
        _ => Err(neither(line)),
    }
}

/// Why a line is of neither form.
fn neither(line: &[u8]) -> String {
    let fields: BTreeMap<String, IgnoredAny> = serde_json::from_slice(line).unwrap_or_default();
    if ["prompt_logprobs", "choices"].iter().any(|name| fields.contains_key(*name)) {
        return "holds no prompt_logprobs; ask the server for them: SamplingParams(max_tokens=1, prompt_logprobs=64), or \
                \"prompt_logprobs\": 64 in the request"
            .into();
    }
    let more = if fields.len() > MOST_FIELDS { ", ..." } else { "" };
    let names: Vec<String> = fields.keys().take(MOST_FIELDS).map(|f| format!("{f:?}")).collect();
    let found = if names.is_empty() { "no field".into() } else { names.join(", ") };
    format!("expected {FORMS}; found {found}{more}")
}

fn entries(ids: &[u32], logprobs: &[f64]) -> std::result::Result<Vec<Entry>, String> {
    if ids.len() != logprobs.len() {
        return Err(format!(
            "has {} ids and {} log-probabilities; expected one of each",
            ids.len(),
            logprobs.len()
        ));
    }
    let of = |(&id, &logprob)| Entry { id, logprob, rank: None };
    Ok(ids.iter().zip(logprobs).map(of).collect())
}

/// A log-probability by itself, or in an object with its rank.
#[derive(Debug, Clone, Copy)]
struct LogProb {
    logprob: f64,
    rank: Option<u64>,
}

impl<'de> Deserialize<'de> for LogProb {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        from.deserialize_any(LogProbVisitor)
    }
}

struct LogProbVisitor;

impl<'de> Visitor<'de> for LogProbVisitor {
    type Value = LogProb;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a log-probability, or an object with one as \"logprob\"")
    }

    fn visit_f64<E: Error>(self, logprob: f64) -> std::result::Result<LogProb, E> {
        Ok(LogProb { logprob, rank: None })
    }

    fn visit_i64<E: Error>(self, n: i64) -> std::result::Result<LogProb, E> {
        self.visit_f64(n as f64)
    }

    fn visit_u64<E: Error>(self, n: u64) -> std::result::Result<LogProb, E> {
        self.visit_f64(n as f64)
    }

    /// The numbers that JSON does not have; whether they may be here is asked later.
    fn visit_str<E: Error>(self, text: &str) -> std::result::Result<LogProb, E> {
        match text {
            "-inf" | "-Infinity" => self.visit_f64(f64::NEG_INFINITY),
            "inf" | "Infinity" => self.visit_f64(f64::INFINITY),
            "nan" | "NaN" => self.visit_f64(f64::NAN),
            _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<LogProb, A::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "lowercase")]
        enum Key {
            Logprob,
            Rank,
            #[serde(other)]
            Other,
        }
        let (mut logprob, mut rank) = (None, None);
        while let Some(key) = map.next_key()? {
            match key {
                Key::Logprob => logprob = Some(map.next_value::<LogProb>()?.logprob),
                Key::Rank => rank = map.next_value()?,
                Key::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let logprob = logprob.ok_or_else(|| A::Error::missing_field("logprob"))?;
        Ok(LogProb { logprob, rank })
    }
}

/// Log-probabilities by id.
#[derive(Debug)]
struct Entries(Vec<Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct ById;

        impl<'de> Visitor<'de> for ById {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of log-probabilities by token id")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(Id(id)) = map.next_key()? {
                    let LogProb { logprob, rank } = map.next_value()?;
                    entries.push(Entry { id, logprob, rank });
                }
                Ok(Entries(entries))
            }
        }

        from.deserialize_map(ById)
    }
}

/// An id as a key.
struct Id(u32);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct OfText;

        impl Visitor<'_> for OfText {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a token's id in quotes, as vLLM's prompt_logprobs have them")
            }

            fn visit_str<E: Error>(self, text: &str) -> std::result::Result<Id, E> {
                let wrong = |_| E::invalid_value(Unexpected::Str(text), &self);
                text.parse().map(Id).map_err(wrong)
            }
        }

        from.deserialize_str(OfText)
    }
}

/// Errs unless a Parquet file has the columns of a position.
pub(super) fn check_columns(place: &str, table: &Table) -> Result<()> {
    let has = |name: &str| table.columns().iter().any(|column| column == name);
    let ids = ["ids", "token_ids"].into_iter().filter(|name| has(name)).count();
    if ids == 1 && has("logprobs") {
        return Ok(());
    }
    Err(error::Error::data(format!(
        "{place}: expected the columns ids (or token_ids) and logprobs; found {}",
        table.columns().join(", ")
    )))
}

/// What a row of Parquet says. Errs with what is wrong with it.
pub(super) fn of_row(row: Row) -> std::result::Result<Record, String> {
    let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
    let mut found = Position { number: None, entries: Vec::new(), target: None };
    for (name, field) in row.into_columns() {
        let wrong = |what: &str| format!("column {name:?}: expected {what}");
        match name.as_str() {
            "logprobs" => {
                let numbers = list(&field).and_then(|l| l.iter().map(number).collect());
                logprobs = numbers.ok_or_else(|| wrong("a list of numbers"))?;
            }
            // Optional, row by row.
            "position" | "target_logprob" if field == Field::Null => {}
            "position" => {
                found.number = Some(whole(&field).ok_or_else(|| wrong("a whole number"))?);
            }
            "target_logprob" => {
                found.target = Some(number(&field).ok_or_else(|| wrong("a number"))?);
            }
            _ => {
                let id = |field: &Field| whole(field).and_then(|id| u32::try_from(id).ok());
                let of_list = list(&field).and_then(|l| l.iter().map(id).collect());
                ids = of_list.ok_or_else(|| wrong("a list of token ids"))?;
            }
        }
    }
    found.entries = entries(&ids, &logprobs)?;
    Ok(Record::Position(found))
}

fn list(field: &Field) -> Option<&[Field]> {
    let Field::ListInternal(list) = field else { return None };
    Some(list.elements())
}

fn whole(field: &Field) -> Option<u64> {
    match *field {
        Field::Byte(n) => n.try_into().ok(),
        Field::Short(n) => n.try_into().ok(),
        Field::Int(n) => n.try_into().ok(),
        Field::Long(n) => n.try_into().ok(),
        Field::UByte(n) => Some(n.into()),
        Field::UShort(n) => Some(n.into()),
        Field::UInt(n) => Some(n.into()),
        Field::ULong(n) => Some(n),
        _ => None,
    }
}

fn number(field: &Field) -> Option<f64> {
    match *field {
        Field::Float16(x) => Some(x.into()),
        Field::Float(x) => Some(x.into()),
        Field::Double(x) => Some(x),
        _ => None,
    }
}
