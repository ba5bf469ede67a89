//! What the teacher says of the students' text: written once, and read by each of them.

use crate::config::{self, Init, Plan};
use crate::data::prepare::DataDir;
use crate::error::Result;
use crate::progress::Silent;
use crate::report::text;
use crate::signal::{Kind, Shard, Window, WriteOptions};
use crate::store::Where;
use crate::store::names::{self, find};
use crate::train::session::device;
use crate::train::signal::{Working, write_signal};
use crate::world::World;
use std::path::{Path, PathBuf};

/// A signal of the kind that a plan's loss hears, beside the students' folders.
#[derive(Debug, Clone)]
pub(super) struct Told {
    /// Its folder.
    pub(super) dir: PathBuf,
    kind: Kind,
    context: u32,
}

impl Told {
    /// Of a quickstart in the folder `out`. None where students learn beside the teacher: from all
    /// that it says, at a temperature that moves, or from its layers.
    pub(super) fn of(plan: &Plan, out: &Path) -> Option<Self> {
        let objective = &plan.objective;
        let moves = objective.temperature_end.is_some_and(|end| end != objective.temperature);
        if !plan.uses_teacher() || moves || plan.init == Some(Init::TeacherLayers) {
            return None;
        }
        let temperature = objective.temperature as f32;
        let kind = match objective.signal {
            config::Signal::TopK => Kind::TopK { k: objective.top_k as u32, temperature },
            config::Signal::Sampled => {
                let planes = Kind::planes_of(objective.samples);
                Kind::Sampled { planes, seed: plan.seed, temperature }
            }
            config::Signal::Dense | config::Signal::Stored => return None,
        };
        Some(Self { dir: out.join("signal"), kind, context: plan.data.context as u32 })
    }

    /// Has the teacher in the folder `teacher` say it of the tokens in `data`, unless it has.
    pub(super) fn write(
        &self,
        teacher: &Path,
        data: &Path,
        plan: &Plan,
        around: Where<'_>,
    ) -> Result<()> {
        let folder = find(&teacher.to_string_lossy(), names::Kind::Teacher, around)?;
        let data = DataDir::open(data)?;
        let machine = &plan.machine;
        let working = Working {
            device: device(machine.device)?,
            dtype: machine.dtype,
            stored: machine.teacher_dtype,
        };
        let options = WriteOptions {
            out: self.dir.clone(),
            kind: self.kind.clone(),
            window: Window { context: self.context, stride: self.context },
            shard: Shard::ALL,
        };
        // Of several processes this is the one that leads; the others wait for what it asks of them.
        let alone = World::SOLO;
        let written =
            write_signal(super::TEACHER, &folder, &data, &working, &options, &alone, &Silent)?;
        if written.computed > 0 {
            around.progress.note(&format!(
                "what the teacher says of the students' {}, written once: {}",
                text::amount(written.positions, "tokens"),
                text::seconds(written.seconds)
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, RunFile};

    #[test]
    fn what_is_written_is_what_the_loss_hears() {
        let told = |sets: &[&str]| {
            let mut wanted = Overrides::default();
            sets.iter().for_each(|set| wanted.set(set).unwrap());
            let file = RunFile::embedded("quickstart").unwrap();
            let plan = config::load(Some(&file), &wanted).unwrap().plan;
            Told::of(&plan, Path::new("q")).map(|told| (told.kind, told.context))
        };
        assert_eq!(told(&[]), Some((Kind::TopK { k: 64, temperature: 1.0 }, 128)));
        let warm = ["objective.temperature=2", "data.context=64"];
        assert_eq!(told(&warm), Some((Kind::TopK { k: 64, temperature: 2.0 }, 64)));
        let sampled = ["objective.signal=sampled", "objective.samples=16", "seed=3"];
        let draws = Kind::Sampled { planes: vec![8, 8], seed: 3, temperature: 1.0 };
        assert_eq!(told(&sampled), Some((draws, 128)));
        for beside in [
            &["objective.signal=dense"][..],
            &["objective.temperature_end=2"],
            &["objective.lambda=0", "select.score=entropy"],
        ] {
            assert!(told(beside).is_none(), "{beside:?}");
        }
    }
}
