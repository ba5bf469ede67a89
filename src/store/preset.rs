//! Who teaches and who learns: the presets of `teachers/` and `students/`, embedded at build time.

use crate::error::{Error, Result};
use crate::model::Gpt2Config;
use crate::store::weights::parse_config_keys;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Map;
use std::sync::OnceLock;

/// Which folder a preset comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Teacher,
    Student,
}

impl Role {
    /// "teacher" or "student".
    pub fn name(self) -> &'static str {
        match self {
            Role::Teacher => "teacher",
            Role::Student => "student",
        }
    }
}

/// One preset file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// The name on the command line; the file's name without `.toml`.
    pub name: String,
    /// Teacher or student.
    pub role: Role,
    /// Number of parameters, the tied head counted once; a test compares it with the shape's.
    pub parameters: usize,
    /// Licence of the weights (SPDX), or of what makes them.
    pub licence: String,
    /// The type in which the weights are stored at their source.
    pub dtype: String,
    /// Where the weights come from; absent for students, which are initialised.
    pub source: Option<Provider>,
    /// How a student gets its first weights; absent for teachers.
    #[serde(alias = "birth")]
    pub init: Option<Init>,
    /// The model, written with the keys of its family's `config.json`.
    #[serde(rename = "config", deserialize_with = "described")]
    pub shape: Gpt2Config,
}

/// Where a teacher's weights come from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Provider {
    /// A repository of the Hub.
    Hub { repo: String, revision: String },
    /// Pretrained here, on generated data, and kept for the next run. (Braces: a unit variant of a
    /// tagged enum would accept unknown keys.)
    Generated {},
}

/// How a student gets its first weights.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Init {
    /// GPT-2's random initialisation with residual scaling.
    Scratch {},
    /// Embeddings, final norm and the listed blocks of the teacher, which must have the student's
    /// width.
    TeacherLayers { layers: Vec<usize> },
    /// The weights of a model folder, run, checkpoint or Hub id.
    Checkpoint { path: String },
}

impl Preset {
    /// Parses a preset file and checks that it is whole.
    pub fn parse(text: &str) -> Result<Self> {
        let preset: Self =
            toml::from_str(text).map_err(|e| Error::usage(format!("not a preset: {e}")))?;
        let wrong = |what: &str| Err(Error::usage(format!("preset {}: {what}", preset.name)));
        match (preset.role, &preset.source, &preset.init) {
            (Role::Teacher, Some(_), None) | (Role::Student, None, Some(_)) => {}
            (Role::Teacher, ..) => return wrong("a teacher has a [source] and no [init]"),
            (Role::Student, ..) => return wrong("a student has an [init] and no [source]"),
        }
        if let Some(Init::TeacherLayers { layers }) = &preset.init
            && layers.len() != preset.shape.n_layer
        {
            return wrong(&format!(
                "n_layer = {} needs as many teacher layers",
                preset.shape.n_layer
            ));
        }
        Ok(preset)
    }
}

fn described<'de, D: Deserializer<'de>>(keys: D) -> std::result::Result<Gpt2Config, D::Error> {
    parse_config_keys(Map::deserialize(keys)?).map_err(D::Error::custom)
}

/// The embedded files: (path in the repository, text).
const FILES: [(&str, &str); 23] = [
    ("teachers/quickstart.toml", include_str!("../../teachers/quickstart.toml")),
    ("teachers/distilgpt2.toml", include_str!("../../teachers/distilgpt2.toml")),
    ("teachers/gpt2.toml", include_str!("../../teachers/gpt2.toml")),
    ("teachers/gpt2-medium.toml", include_str!("../../teachers/gpt2-medium.toml")),
    ("teachers/gpt2-large.toml", include_str!("../../teachers/gpt2-large.toml")),
    ("teachers/gpt2-xl.toml", include_str!("../../teachers/gpt2-xl.toml")),
    ("teachers/smollm2-135m.toml", include_str!("../../teachers/smollm2-135m.toml")),
    ("teachers/smollm2-360m.toml", include_str!("../../teachers/smollm2-360m.toml")),
    ("teachers/smollm2-1.7b.toml", include_str!("../../teachers/smollm2-1.7b.toml")),
    ("teachers/qwen2.5-0.5b.toml", include_str!("../../teachers/qwen2.5-0.5b.toml")),
    ("teachers/qwen3-0.6b.toml", include_str!("../../teachers/qwen3-0.6b.toml")),
    ("teachers/qwen3-1.7b.toml", include_str!("../../teachers/qwen3-1.7b.toml")),
    ("teachers/pythia-160m.toml", include_str!("../../teachers/pythia-160m.toml")),
    ("teachers/pythia-410m.toml", include_str!("../../teachers/pythia-410m.toml")),
    ("teachers/pythia-1b.toml", include_str!("../../teachers/pythia-1b.toml")),
    ("teachers/pythia-1.4b.toml", include_str!("../../teachers/pythia-1.4b.toml")),
    ("teachers/llama-3.2-1b.toml", include_str!("../../teachers/llama-3.2-1b.toml")),
    ("students/tiny.toml", include_str!("../../students/tiny.toml")),
    ("students/gpt2-30m.toml", include_str!("../../students/gpt2-30m.toml")),
    ("students/distil-82m.toml", include_str!("../../students/distil-82m.toml")),
    ("students/gpt2-124m.toml", include_str!("../../students/gpt2-124m.toml")),
    ("students/llama-30m.toml", include_str!("../../students/llama-30m.toml")),
    ("students/llama-135m.toml", include_str!("../../students/llama-135m.toml")),
];

/// All presets, teachers first, small to large.
pub fn all() -> &'static [Preset] {
    static ALL: OnceLock<Vec<Preset>> = OnceLock::new();
    // A file that does not parse cannot reach a user: the tests below parse every one.
    ALL.get_or_init(|| FILES.iter().filter_map(|(_, text)| Preset::parse(text).ok()).collect())
}

/// The teacher of that name.
pub fn teacher(name: &str) -> Option<&'static Preset> {
    all().iter().find(|p| p.role == Role::Teacher && p.name == name)
}

/// What a student of that name may be: a student, or a teacher, whose name is a shape, too.
pub fn for_student(name: &str) -> Option<&'static Preset> {
    student(name).or_else(|| teacher(name))
}

/// The student of that name.
pub fn student(name: &str) -> Option<&'static Preset> {
    all().iter().find(|p| p.role == Role::Student && p.name == name)
}

/// The names of one role, or of both.
pub fn names(role: Option<Role>) -> Vec<&'static str> {
    all().iter().filter(|p| role.is_none_or(|r| p.role == r)).map(|p| p.name.as_str()).collect()
}

/// The preset whose name is nearest to a misspelt one, if any is near.
pub fn nearest(text: &str, role: Option<Role>) -> Option<&'static str> {
    let text = text.to_lowercase();
    let scored = names(role).into_iter().map(|n| (strsim::jaro_winkler(n, &text), n));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, n)| n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_parses_and_states_its_true_parameter_count() {
        for (path, text) in FILES {
            let preset = Preset::parse(text).unwrap_or_else(|e| panic!("{path}: {e}"));
            assert_eq!(preset.parameters, preset.shape.parameters(), "{path}");
            assert_eq!(path, format!("{}s/{}.toml", preset.role.name(), preset.name));
        }
        assert_eq!(all().len(), FILES.len());
    }

    #[test]
    fn the_distilled_student_takes_layers_that_its_teacher_has() {
        let Some(Init::TeacherLayers { layers }) = &student("distil-82m").unwrap().init else {
            panic!()
        };
        let gpt2 = teacher("gpt2").unwrap();
        assert!(layers.iter().all(|l| *l < gpt2.shape.n_layer));
        assert_eq!(student("distil-82m").unwrap().shape.n_embd, gpt2.shape.n_embd);
    }

    #[test]
    fn unknown_keys_and_half_presets_are_refused() {
        let good = FILES[0].1;
        assert!(
            Preset::parse(
                &good.replace("kind = \"generated\"", "kind = \"generated\"\nrepo = \"x\"")
            )
            .is_err()
        );
        assert!(
            Preset::parse(&format!("colour = 1\n{good}"))
                .unwrap_err()
                .to_string()
                .contains("colour")
        );
        assert!(
            Preset::parse(&good.replace("\"teacher\"", "\"student\""))
                .unwrap_err()
                .to_string()
                .contains("[init]")
        );
        assert!(
            Preset::parse(&good.replace("n_head = 6", "n_head = 5"))
                .unwrap_err()
                .to_string()
                .contains("n_head")
        );
    }

    #[test]
    fn a_misspelt_name_finds_its_neighbour() {
        assert_eq!(nearest("gpt2-meduim", None), Some("gpt2-medium"));
        assert_eq!(nearest("distil82m", Some(Role::Student)), Some("distil-82m"));
        assert_eq!(nearest("zebra", None), None);
        assert!(teacher("tiny").is_none() && student("tiny").is_some());
    }
}
