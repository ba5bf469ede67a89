//! How a student comes to its first weights: from scratch, from layers of its teacher, or as a
//! stored model.

use crate::config::{Init as Word, Plan};
use crate::error::{Error, Result};
use crate::model::{Gpt2, Gpt2Config};
use crate::store::names::{Kind, ModelRef};
use crate::store::preset::{Init, Preset, Provider};
use crate::store::verified::Chosen;
use candle_core::Device;
use std::path::Path;

/// The way that a plan's student takes; decided by [`Start::of`] alone, for runs and for forecasts
/// of them.
#[derive(Debug, Clone, PartialEq)]
pub enum Start {
    /// Random weights in a preset's shape, under the plan's `[shape]`.
    Scratch(&'static Preset),
    /// The teacher's embeddings, final norm and these of its blocks.
    TeacherLayers(Vec<usize>),
    /// The weights of a stored model: its name, and what that means.
    Stored(String, ModelRef),
}

impl Start {
    /// A preset starts as it says unless the plan says otherwise; anything else is a stored model.
    /// Errs where the plan says `[shape]` or `layers` and the start reads none: nothing that is
    /// asked for is ignored.
    pub fn of(plan: &Plan) -> Result<Self> {
        Self::with(plan, ModelRef::parse(&plan.student, Kind::Student)?)
    }

    /// As [`Start::of`] for a run whose checkpoint is `checkpoint`: a student that began as a
    /// stored model has its shape and its weights there, whatever has become of that model, or is
    /// of that name now. `was_stored` if the checkpoint noted such a model.
    pub fn of_begun(plan: &Plan, checkpoint: &Path, was_stored: bool) -> Result<Self> {
        let own = ModelRef::Folder {
            dir: checkpoint.to_path_buf(),
            origin: format!("checkpoint {}", checkpoint.display()),
            // A run that goes on reads its weights from there, and verifies all of it.
            chosen: Chosen::Verified,
        };
        let meant = match ModelRef::named(&plan.student, Kind::Student) {
            Ok(preset @ ModelRef::Preset(_)) if !was_stored => preset,
            _ => own.clone(),
        };
        Ok(match Self::with(plan, meant)? {
            Self::Stored(name, _) => Self::Stored(name, own),
            other => other,
        })
    }

    fn with(plan: &Plan, meant: ModelRef) -> Result<Self> {
        let preset = if let ModelRef::Preset(preset) = meant { Some(preset) } else { None };
        let word = plan.init.unwrap_or(match preset.map(|p| &p.init) {
            Some(None | Some(Init::Scratch {})) => Word::Scratch,
            Some(Some(Init::TeacherLayers { .. })) => Word::TeacherLayers,
            None | Some(Some(Init::Checkpoint { .. })) => Word::Checkpoint,
        });
        check_read(plan, word)?;
        let Some(preset) = preset else {
            return match word {
                Word::Checkpoint => Ok(Self::Stored(plan.student.clone(), meant)),
                other => Err(Error::usage(format!(
                    "init = \"{other}\" needs a student preset, found the stored model {}; its init is \"checkpoint\"",
                    plan.student
                ))),
            };
        };
        match (word, &preset.init, &preset.source) {
            (Word::Scratch, ..) => Ok(Self::Scratch(preset)),
            (Word::TeacherLayers, own, _) => {
                let own = if let Some(Init::TeacherLayers { layers }) = own {
                    Some(layers.clone())
                } else {
                    None
                };
                plan.layers.clone().or(own).map(Self::TeacherLayers).ok_or_else(|| {
                    Error::usage("init = \"teacher-layers\" needs layers = [..]: which of the teacher's blocks")
                })
            }
            (Word::Checkpoint, Some(Init::Checkpoint { path }), _) => {
                Ok(Self::Stored(path.clone(), ModelRef::parse(path, Kind::Any)?))
            }
            (Word::Checkpoint, _, Some(Provider::Hub { .. })) => {
                Ok(Self::Stored(plan.student.clone(), meant))
            }
            (Word::Checkpoint, ..) => Err(Error::usage(format!(
                "init = \"checkpoint\" needs a student with weights, and the preset {} has none; name a folder or Hub id",
                plan.student
            ))),
        }
    }

    /// The student's shape beside a teacher of the shape `teacher`. From scratch its vocabulary is
    /// the teacher's, or else the data's (`vocabulary` tokens), or else the preset's. `stored`
    /// gives the shape of a stored model.
    pub fn shape(
        &self,
        plan: &Plan,
        teacher: Option<&Gpt2Config>,
        vocabulary: Option<usize>,
        stored: impl FnOnce(&str, &ModelRef) -> Result<Gpt2Config>,
    ) -> Result<Gpt2Config> {
        match self {
            Self::Scratch(preset) => {
                let base = preset.shape.clone();
                let vocab_size =
                    teacher.map(|t| t.vocab_size).or(vocabulary).unwrap_or(base.vocab_size);
                Ok(Gpt2Config { vocab_size, ..base }.overridden(&plan.shape))
            }
            Self::TeacherLayers(layers) => teacher.ok_or_else(needs_teacher)?.of_layers(layers),
            Self::Stored(name, meant) => stored(name, meant),
        }
    }

    /// The student of the shape `config` that [`Start::shape`] gave, with weights. `stored` loads a
    /// stored model.
    pub fn student(
        &self,
        config: Gpt2Config,
        seed: u64,
        teacher: Option<&Gpt2>,
        device: &Device,
        stored: impl FnOnce() -> Result<Gpt2>,
    ) -> Result<Gpt2> {
        match self {
            Self::Scratch(_) => Gpt2::scratch(config, seed, device),
            Self::TeacherLayers(layers) => {
                Gpt2::from_layers(teacher.ok_or_else(needs_teacher)?, layers)
            }
            Self::Stored(..) => stored(),
        }
    }
}

fn needs_teacher() -> Error {
    Error::usage("init = \"teacher-layers\" needs a teacher")
}

/// Errs where `[shape]` or `layers` say what a student that starts by `word` does not read.
fn check_read(plan: &Plan, word: Word) -> Result<()> {
    let whose = match word {
        Word::Scratch => "",
        Word::TeacherLayers => {
            "has its teacher's shape (init = \"teacher-layers\"; layers = [..] says how deep)"
        }
        Word::Checkpoint => "starts from stored weights and has their shape",
    };
    if word != Word::Scratch && !plan.shape.is_empty() {
        return Err(Error::usage(format!(
            "[shape] cannot change the student {}, which {whose}; remove it, or set init = \"scratch\"",
            plan.student
        )));
    }
    if word != Word::TeacherLayers && plan.layers.is_some() {
        return Err(Error::usage(format!(
            "layers names the teacher's layers to start from, but the student {} has init = \"{word}\"; remove \
             layers, or set init = \"teacher-layers\"",
            plan.student
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::plan;

    fn nothing_stored(name: &str, _: &ModelRef) -> Result<Gpt2Config> {
        Err(Error::internal(format!("asked for {name}")))
    }

    #[test]
    fn the_shape_of_a_student_is_that_of_its_weights() {
        let teacher = Gpt2::scratch(Gpt2Config::new(50, 16, 12, 3, 2), 1, &Device::Cpu).unwrap();
        let small = [
            "shape.n_layer=1",
            "shape.n_embd=8",
            "shape.n_head=2",
            "shape.n_positions=8",
            "data.context=8",
        ];
        let scratch = plan(&[&["student=tiny"], &small[..]].concat());
        let layers = plan(&["student=distil-82m", "layers=[2, 0]", "data.context=8"]);
        for (plan, blocks) in [(&scratch, 1), (&layers, 2)] {
            let start = Start::of(plan).unwrap();
            let shape = start.shape(plan, Some(&teacher.config), Some(7), nothing_stored).unwrap();
            assert_eq!((shape.vocab_size, shape.n_layer), (50, blocks), "the teacher's vocabulary");
            let load = || Err(Error::internal("nothing is stored"));
            let student =
                start.student(shape.clone(), 1, Some(&teacher), &Device::Cpu, load).unwrap();
            assert_eq!(
                (&student.config, student.params.layout()),
                (&shape, &crate::model::Layout::new(&shape))
            );
        }
        let alone = |vocabulary| {
            Start::of(&scratch).unwrap().shape(&scratch, None, vocabulary, nothing_stored).unwrap()
        };
        assert_eq!(alone(Some(7)).vocab_size, 7, "the data's");
        assert_eq!(
            alone(None).vocab_size,
            crate::store::preset::student("tiny").unwrap().shape.vocab_size
        );
        let no_teacher =
            Start::of(&layers).unwrap().shape(&layers, None, None, nothing_stored).unwrap_err();
        assert!(no_teacher.to_string().contains("needs a teacher"), "{no_teacher}");
    }

    #[test]
    fn a_start_is_what_the_plan_says_and_else_what_the_preset_says() {
        let start = |set: &[&str]| Start::of(&plan(set));
        assert!(matches!(start(&["student=tiny"]), Ok(Start::Scratch(p)) if p.name == "tiny"));
        assert!(
            matches!(start(&["student=gpt2"]), Ok(Start::Scratch(p)) if p.name == "gpt2"),
            "a teacher's shape"
        );
        assert!(
            matches!(start(&["student=gpt2", "init=checkpoint"]), Ok(Start::Stored(name, _)) if name == "gpt2")
        );
        assert!(
            matches!(start(&["student=org/x"]), Ok(Start::Stored(_, ModelRef::Hub { id, .. })) if id == "org/x")
        );
        assert_eq!(
            start(&["student=tiny", "teacher=t", "init=teacher-layers", "layers=[1]"]).unwrap(),
            Start::TeacherLayers(vec![1])
        );
        for (set, part) in [
            (&["student=tiny", "init=checkpoint"][..], "preset tiny has none"),
            (&["student=tiny", "teacher=t", "init=teacher-layers"], "needs layers = [..]"),
            (&["student=org/x", "init=scratch"], "needs a student preset"),
            (&["student=org/x", "shape.n_layer=1"], "[shape] cannot change the student org/x"),
            (&["student=tiny", "layers=[0]"], "layers names the teacher's layers"),
        ] {
            let message = start(set).unwrap_err().to_string();
            assert!(message.contains(part), "{set:?}: {message}");
        }
    }
}
