//! Names that hold a size, and the vocabulary for which they hold: most of a small model is its
//! embedding, so that another vocabulary makes another model of the same name.

use super::preset;
use super::student::Start;
use crate::config::{Overrides, Plan, RunFile, load};
use crate::model::Gpt2Config;
use crate::report::text::count;
use std::path::Path;

/// The vocabulary for which those built-in run files are named and described that bring a shape of
/// their own.
pub const DESCRIBED_VOCABULARY: usize = 8192;
/// A size that is off by no more than this share is the one that is named.
const OFF: f64 = 0.05;

/// What to say where the name of the run file `config` (as it was given) or of the plan's student
/// is that of a model of another size than `student`.
pub fn misnamed(config: Option<&str>, plan: &Plan, student: &Gpt2Config) -> Option<String> {
    let (name, described) = described(config, plan)?;
    let (found, expected) = (student.parameters() as f64, described.parameters() as f64);
    ((found / expected - 1.0).abs() > OFF).then(|| {
        format!(
            "the student has {} parameters, with {} tokens of vocabulary; the name and description of {name} are those of {}, with {}",
            count(student.parameters() as u64),
            count(student.vocab_size as u64),
            count(described.parameters() as u64),
            count(described.vocab_size as u64),
        )
    })
}

/// The shape that a name is known for: a built-in run file's, if it brings one, or else a preset's
/// that the plan does not change.
fn described(config: Option<&str>, plan: &Plan) -> Option<(String, Gpt2Config)> {
    if matches!(Start::of(plan), Ok(Start::Stored(..)) | Err(_)) {
        return None;
    }
    // A file of that name comes first, and is not read again: it may be a pipe.
    if let Some(name) = config.filter(|name| !Path::new(name).exists()) {
        let own = load(RunFile::embedded(name).as_ref(), &Overrides::default()).ok()?.plan;
        if own.student == plan.student && !own.shape.is_empty() {
            let shape = preset::for_student(&own.student)?.shape.overridden(&own.shape);
            return Some((
                name.to_string(),
                Gpt2Config { vocab_size: DESCRIBED_VOCABULARY, ..shape },
            ));
        }
    }
    let unchanged = plan.shape.is_empty() && plan.layers.is_none();
    let preset = preset::for_student(&plan.student).filter(|_| unchanged)?;
    Some((preset.name.clone(), preset.shape.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EMBEDDED;

    fn plan(config: Option<&str>, set: &[&str]) -> Plan {
        let mut wanted = Overrides::default();
        set.iter().for_each(|s| wanted.set(s).unwrap());
        load(config.and_then(RunFile::embedded).as_ref(), &wanted).unwrap().plan
    }

    /// The note for a student of that plan from scratch on `vocabulary` tokens.
    fn note(config: Option<&str>, set: &[&str], vocabulary: usize) -> Option<String> {
        let plan = plan(config, set);
        let shape = preset::for_student(&plan.student).unwrap().shape.overridden(&plan.shape);
        misnamed(config, &plan, &Gpt2Config { vocab_size: vocabulary, ..shape })
    }

    #[test]
    fn a_name_that_holds_for_another_vocabulary_is_noted() {
        for (config, set, vocabulary, parts) in [
            (
                Some("pretrain-14m"),
                &[][..],
                2048,
                ["11,532,288", "pretrain-14m are those of 13,891,584"],
            ),
            (Some("clm"), &[], 50_257, ["12,368,064", "clm are those of 4,291,584"]),
            (Some("distill-4m"), &["teacher=t"], 50_257, ["12,368,064", "with 8,192"]),
            (None, &["student=gpt2-30m"], 8192, ["14,186,496", "gpt2-30m are those of 30,339,456"]),
            (Some("pretrain-clm"), &[], 8192, ["92,133,888", "gpt2-124m are those of 124,439,808"]),
            (None, &["student=tiny"], 50_257, ["50,257 tokens", "tiny are those of 675,328"]),
        ] {
            let note = note(config, set, vocabulary);
            let note = note.unwrap_or_else(|| panic!("{config:?} {set:?}: no note"));
            for part in parts {
                assert!(note.contains(part), "no {part:?} in {note}");
            }
        }
    }

    #[test]
    fn a_name_that_fits_or_names_no_size_is_not() {
        for (config, set, vocabulary) in [
            (Some("pretrain-14m"), &[][..], 8192),
            (Some("clm"), &[], 8192),
            (Some("clm"), &[], 8000),
            (Some("quickstart"), &[], 1829),
            (None, &["student=gpt2-124m"], 50_257),
            (None, &["student=tiny", "shape.n_layer=6"], 50_257),
        ] {
            assert_eq!(note(config, set, vocabulary), None, "{config:?} {set:?}");
        }
        let stored = plan(Some("clm"), &["student=org/x"]);
        let shape = Gpt2Config::new(50, 16, 12, 3, 2);
        assert_eq!(misnamed(Some("clm"), &stored, &shape), None, "that is no preset");
    }

    #[test]
    fn every_run_file_with_a_shape_says_its_size_for_that_vocabulary() {
        for (name, text) in EMBEDDED {
            let plan = plan(Some(name), &["student=tiny"]);
            if plan.shape.is_empty() {
                continue;
            }
            let shape = preset::student("tiny").unwrap().shape.overridden(&plan.shape);
            let shape = Gpt2Config { vocab_size: DESCRIBED_VOCABULARY, ..shape };
            let size = count(shape.parameters() as u64);
            let comments = text.lines().filter(|line| line.starts_with('#'));
            let comments: Vec<&str> =
                comments.filter(|line| line.contains("parameters ")).collect();
            let says = |line: &&&str| line.contains(&size) && line.contains("8,192");
            assert!(comments.iter().any(|l| says(&l)), "{name}: {size} in {comments:?}");
        }
    }
}
