//! The context of a run that names none: what its models can hold.

use crate::config::{Origin, Plan, Resolved};
use crate::error::Result;
use crate::model::Gpt2Config;
use crate::signal::Stored;
use crate::store::names::{Kind, ModelRef};
use crate::store::student::Start;
use std::path::Path;

/// The key.
const CONTEXT: &str = "data.context";

/// Lowers `data.context` to the positions of student and teacher where nobody wrote it, or to what the teacher
/// of a stored signal read at once. Models that
/// would have to be fetched first are not asked: a run of theirs says what is too long.
pub fn fit_context(resolved: &mut Resolved) -> Result<()> {
    // Models are looked at only where it is asked what they hold.
    let is_default =
        resolved.value(CONTEXT).is_some_and(|value| matches!(value.origin, Origin::Rule(_)));
    if !is_default {
        return Ok(());
    }
    let plan = &resolved.plan;
    let models = [teacher(plan), student(plan)].into_iter().flatten().map(|s| s.n_positions);
    match models.chain(signal(plan)).min() {
        Some(fewest) if (1..plan.data.context).contains(&fewest) => {
            let why = if signal(plan).is_some() {
                "what the models and the signal hold"
            } else {
                "what the models hold"
            };
            let why = why.to_string();
            resolved.fall_back(CONTEXT, (fewest as i64).into(), why)
        }
        _ => Ok(()),
    }
}

fn teacher(plan: &Plan) -> Option<Gpt2Config> {
    let name = plan.live_teacher()?;
    stored(&ModelRef::parse(name, Kind::Teacher).ok()?)
}

/// What a student of a stored signal may read at once.
fn signal(plan: &Plan) -> Option<usize> {
    let dir = plan.data.signal.as_deref().filter(|_| plan.uses_teacher())?;
    Some(Stored::open(Path::new(dir)).ok()?.header().window.longest() as usize)
}

fn student(plan: &Plan) -> Option<Gpt2Config> {
    match Start::of(plan).ok()? {
        Start::Scratch(preset) => Some(preset.shape.overridden(&plan.shape)),
        Start::TeacherLayers(_) => None, // the teacher's
        Start::Stored(_, meant) => stored(&meant),
    }
}

fn stored(meant: &ModelRef) -> Option<Gpt2Config> {
    match meant {
        ModelRef::Preset(preset) => Some(preset.shape.clone()),
        other => other.clone().local()?.config().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load};

    #[test]
    fn a_context_that_nobody_wrote_is_what_the_models_hold() {
        let context = |set: &[&str]| {
            let mut wanted = Overrides::default();
            set.iter().for_each(|s| wanted.set(s).unwrap());
            let mut resolved = load(None, &wanted).unwrap();
            fit_context(&mut resolved).unwrap();
            (resolved.plan.data.context, resolved.plan.eval.stride)
        };
        assert_eq!(context(&["student=gpt2"]), (1024, 1024));
        assert_eq!(context(&["student=tiny"]), (128, 128));
        assert_eq!(context(&["student=tiny", "eval.stride=64"]), (128, 64));
        assert_eq!(context(&["student=tiny", "shape.n_positions=32"]), (32, 32));
        assert_eq!(context(&["student=gpt2", "teacher=quickstart"]), (128, 128));
        assert_eq!(context(&["student=tiny", "data.context=1024"]), (1024, 1024), "as written");
        assert_eq!(context(&["student=org/name"]), (1024, 1024), "not known yet");
    }
}
