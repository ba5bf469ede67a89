//! The commands that go on with a run, or use what it made.

use super::{Row, State};
use crate::config::Plan;
use crate::data::prepare::VALID;
use crate::report::text::quoted;
use crate::train::run::begin_again;
use std::path::Path;

/// Commands, and notes. `positions` are those of the student.
pub(super) fn steps(
    run: &Path,
    row: &Row,
    ruined: bool,
    plan: Option<&Plan>,
    positions: Option<usize>,
) -> (Vec<String>, Vec<String>) {
    // The run may be the working folder.
    let whole = std::path::absolute(run).unwrap_or_else(|_| run.to_path_buf());
    let over = row.state == State::Finished;
    let comparison = whole.ancestors().skip(1).take(3).find(|d| d.join("compare.json").is_file());
    let notes = comparison.filter(|_| !over).map(|dir| {
        format!(
            "a run of the comparison {}: the `eslm-kd compare` command that began it goes on with all of it",
            dir.display()
        )
    });
    let next = match (row.state, plan) {
        (State::Running, _) | (_, None) => Vec::new(),
        // The batches that it would meet again ruin it again, and nobody has a use for its model.
        (State::Finished | State::CutOff, Some(plan)) if ruined && plan.data.dir.is_some() => {
            vec![begin_again(run, plan)]
        }
        (State::Finished, Some(plan)) => uses(run, plan, positions),
        (State::Stopped | State::CutOff | State::Damaged, Some(plan)) => {
            vec![resume(run, &whole, plan)]
        }
    };
    (next, notes.into_iter().collect())
}

fn uses(run: &Path, plan: &Plan, positions: Option<usize>) -> Vec<String> {
    let run = quoted(run);
    let with_valid = |data: &&String| Path::new(data.as_str()).join(VALID).is_file();
    let eval = plan.data.dir.as_ref().filter(with_valid).map(|data| {
        let windows = windows(plan, positions);
        format!("eslm-kd eval {run} --data {}{windows}", quoted(Path::new(data)))
    });
    std::iter::once(format!("eslm-kd generate {run} --prompt \"...\"")).chain(eval).collect()
}

/// Flags by which `eval` cuts a text into the windows of the run's own validation.
fn windows(plan: &Plan, positions: Option<usize>) -> String {
    let (context, stride) = (plan.data.context, plan.eval.stride);
    let mut flags = String::new();
    if positions.is_some_and(|all| context < all) {
        flags += &format!(" --context {context}");
    }
    if stride < context {
        flags += &format!(" --stride {stride}");
    }
    flags
}

fn resume(run: &Path, whole: &Path, plan: &Plan) -> String {
    let own = format!("eslm-kd {} --resume --out {}", plan.verb(), quoted(run));
    if plan.data.dir.is_some() {
        return own;
    }
    // The quickstart's runs name no data; it goes on with all of them, and with its teacher.
    let Some(above) = whole.parent() else { return own };
    let is = |name: &str| whole.file_name().is_some_and(|found| found == name);
    if is("teacher") && above.join("data").is_dir() {
        "eslm-kd distill".into()
    } else if above.join("plain").is_dir() {
        format!("eslm-kd distill --resume --out {}", quoted(above))
    } else {
        format!("{own} --data DIR")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::plan;
    use std::fs;

    #[test]
    fn each_kind_of_run_has_its_command() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        for folder in
            ["q/plain", "q/random", "q/eslm", "cache/data", "cache/teacher", "c/runs/a b/seed-1"]
        {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::write(at("c/compare.json"), "{}").unwrap();
        let row = |state| Row {
            run: at(""),
            state,
            damage: None,
            step: 1,
            steps: None,
            loss: None,
            val_loss: None,
            best_val_loss: None,
            age: None,
        };
        let root = place.path().display().to_string();
        for (run, state, set, next) in [
            ("own", State::Stopped, &["data.dir=d"][..], "pretrain --resume --out @/own"),
            ("own", State::CutOff, &["data.dir=d", "teacher=t"], "distill --resume --out @/own"),
            ("own", State::CutOff, &[], "pretrain --resume --out @/own --data DIR"),
            ("q/eslm", State::CutOff, &["teacher=t"], "distill --resume --out @/q"),
            ("q/plain", State::Stopped, &[], "distill --resume --out @/q"),
            ("q/random", State::Stopped, &["teacher=t"], "distill --resume --out @/q"),
            ("cache/teacher", State::Stopped, &[], "distill"),
            ("own", State::Finished, &[], "generate @/own --prompt \"...\""),
        ] {
            let (found, notes) = steps(&at(run), &row(state), false, Some(&plan(set)), None);
            assert_eq!((found.len(), notes.len()), (1, 0), "{run}: {found:?} {notes:?}");
            assert_eq!(found[0], format!("eslm-kd {}", next.replace('@', &root)));
        }
        let (found, _) = steps(&at("own"), &row(State::Running), false, Some(&plan(&[])), None);
        assert_eq!(found, Vec::<String>::new(), "it is under way");
        let (found, _) =
            steps(&at("own"), &row(State::CutOff), true, Some(&plan(&["data.dir=d"])), None);
        assert!(found[0].starts_with(&format!("eslm-kd pretrain {root}/own --lr ")), "{found:?}");
        assert!(found[0].ends_with("/own-lower-lr"), "{found:?}");
        let finished = row(State::Finished);
        let (over, _) = steps(&at("own"), &finished, true, Some(&plan(&["data.dir=d"])), None);
        assert_eq!(over, found);
        for (context, stride, flags) in
            [(128, 128, ""), (64, 64, " --context 64"), (64, 16, " --context 64 --stride 16")]
        {
            let set = [format!("data.context={context}"), format!("eval.stride={stride}")];
            let data = at("data");
            fs::create_dir_all(&data).unwrap();
            fs::write(data.join(VALID), "").unwrap();
            let dir = format!("data.dir={}", data.display());
            let plan = plan(&[&dir, &set[0], &set[1]]);
            let (found, _) =
                steps(&at("own"), &row(State::Finished), false, Some(&plan), Some(128));
            assert_eq!(found[1], format!("eslm-kd eval {root}/own --data {root}/data{flags}"));
            // Without a validation split there is nothing to evaluate.
            fs::remove_file(data.join(VALID)).unwrap();
            let (found, _) =
                steps(&at("own"), &row(State::Finished), false, Some(&plan), Some(128));
            assert_eq!(found.len(), 1, "{found:?}");
        }
        let arm = at("c/runs/a b/seed-1");
        let (found, notes) =
            steps(&arm, &row(State::Stopped), false, Some(&plan(&["data.dir=d"])), None);
        assert!(found[0].ends_with("/c/runs/a b/seed-1'"), "{found:?}");
        assert!(notes[0].contains("a run of the comparison") && notes[0].contains("/c:"));
    }
}
