//! What a micro-batch hears of the teacher: from one beside the run, or from what one wrote.

use super::micro::{Micro, pick, select_rows};
use super::step::Trainer;
use crate::cost::TeacherRows;
use crate::error::Result;
use crate::loss::head::{self, Logits};
use crate::loss::{Signal, SignalKind};
use crate::signal::Fetched;

/// Who says what the teacher says of a micro-batch.
pub(super) enum Speaker<'a> {
    /// A teacher beside the run: its logits of every position, formed where they are read.
    Live(Logits),
    /// What one said before.
    Read(Fetched<'a>),
}

/// What is known of the teacher before selection.
pub(super) struct Heard<'a> {
    /// The signal of every position, or what is said beside it; None where the score needs neither.
    pub(super) signal: Option<Signal>,
    pub(super) speaker: Option<Speaker<'a>>,
}

impl Trainer {
    /// The teacher's output at the micro-batch, if the route reads any of it.
    pub(super) fn speaker(&self, micro: &Micro<'_>) -> Result<Option<Speaker<'_>>> {
        let batch = micro.batch;
        if micro.work.route.teacher == TeacherRows::None {
            return Ok(None);
        }
        if let Some(stored) = &self.signal {
            return stored.fetch(&batch.positions()).map(Speaker::Read).map(Some);
        }
        let teacher = self.teacher.as_ref();
        let logits = teacher.map(|t| t.signal(&batch.inputs, batch.context)).transpose()?;
        Ok(logits.map(Speaker::Live))
    }

    /// The signal of every position. Of one that is read and not compared with before selection, what
    /// is said beside it will do: only kept rows are then decoded.
    pub(super) fn signal_before_selection(
        &self,
        micro: &Micro<'_>,
        speaker: &Speaker<'_>,
    ) -> Result<Signal> {
        let route = micro.work.route;
        match speaker {
            Speaker::Read(fetched) if !route.one_pass && route.selects && !micro.compares() => {
                Ok(Signal::scores(fetched.said()))
            }
            _ => self.signal_for(micro, speaker, None),
        }
    }

    /// What the loss hears of the teacher at `rows`, ascending (None: at all positions). A sparse
    /// signal belongs to its place in the data: it is the same in every epoch and run of a seed, and
    /// the same from a teacher and from what that teacher wrote.
    pub(super) fn signal_for(
        &self,
        micro: &Micro<'_>,
        speaker: &Speaker<'_>,
        rows: Option<&[u32]>,
    ) -> Result<Signal> {
        let batch = micro.batch;
        let scores_alone = !micro.work.route.distils && !micro.compares();
        let logits = match speaker {
            Speaker::Read(fetched) if scores_alone => {
                return Ok(Signal::scores(pick(rows, &fetched.said()).into_owned()));
            }
            Speaker::Read(fetched) => return fetched.signal(rows),
            Speaker::Live(logits) => select_rows(logits.clone(), rows)?,
        };
        let kind = match SignalKind::of(&self.plan.objective)? {
            SignalKind::Dense => return Ok(Signal::Dense(logits)),
            _ if scores_alone => SignalKind::Scores,
            kind => kind,
        };
        let positions = batch.positions();
        let (targets, positions) = (pick(rows, &batch.targets), pick(rows, &positions));
        let tau = micro.objective.temperature;
        head::reduce(&logits, &targets, kind, tau, self.plan.seed, &positions)
    }
}
