//! The commands that go on with a run, or use what it made.

use super::{Row, State};
use crate::config::Plan;
use crate::report::text::quoted;
use std::path::Path;

/// Commands, and notes.
pub(super) fn steps(run: &Path, row: &Row, plan: Option<&Plan>) -> (Vec<String>, Vec<String>) {
    let place = quoted(run);
    let mut notes = Vec::new();
    let comparison = run.ancestors().skip(1).take(3).find(|dir| dir.join("compare.json").is_file());
    if let Some(dir) = comparison.filter(|_| row.state != State::Finished) {
        notes.push(format!(
            "a run of the comparison {}: the `eslm-kd compare` command that began it goes on with all of it",
            dir.display()
        ));
    }
    let Some(plan) = plan else {
        return (Vec::new(), notes);
    };
    let resume = || match (&plan.data.dir, &plan.teacher) {
        (Some(_), Some(_)) => format!("eslm-kd distill --resume --out {place}"),
        (Some(_), None) => format!("eslm-kd pretrain --resume --out {place}"),
        // The quickstart's runs name no data; it goes on with all of them.
        (None, _) if run.file_name().is_some_and(|name| name == "teacher") => {
            "eslm-kd distill".into()
        }
        (None, _) => {
            let whole = run.parent().map_or_else(|| "..".into(), quoted);
            format!("eslm-kd distill --resume --out {whole}")
        }
    };
    let next = match row.state {
        State::Running => Vec::new(),
        State::Finished => {
            let eval = plan
                .data
                .dir
                .as_ref()
                .map(|data| format!("eslm-kd eval {place} --data {}", quoted(Path::new(data))));
            let first = format!("eslm-kd generate {place} --prompt \"...\"");
            std::iter::once(first).chain(eval).collect()
        }
        State::Stopped | State::CutOff | State::Damaged => vec![resume()],
    };
    (next, notes)
}
