//! Loss curves of runs that may still be training: found, read as far as they are written, drawn by
//! the charts of a comparison.

mod page;

pub use page::page;

use super::runs::{Point, folder, is_finished};
use super::state::{FILE, State};
use crate::config::Plan;
use crate::error::{Error, Result};
use crate::files::children;
use crate::files::near::did_you_mean;
use crate::store::checkpoint::{Glance, holder, list};
use crate::train::events::{Totals, each_metric};
use crate::train::run::{CONFIG_FILE, METRICS_FILE, plan_of};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Folders below one that is no run in which runs are looked for: a comparison has
/// `runs/LABEL/seed-S`.
const DEPTH: usize = 3;

/// A run folder on the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The run folder.
    pub run: PathBuf,
    /// What people call it.
    pub name: String,
    /// What it is a run of: an arm of a comparison, or itself.
    pub arm: String,
    /// How it looks in a chart; runs of one arm of a comparison look alike.
    pub style: usize,
}

/// Whether a run is over, and length and time of its metrics.
pub type Fingerprint = (bool, u64, Option<SystemTime>);

/// What a run has written so far.
#[derive(Debug, Clone)]
pub struct Live {
    /// The folder.
    pub place: Place,
    /// Whether it is over.
    pub finished: bool,
    /// Whether a process of this machine trains it.
    pub running: bool,
    /// Steps done: by any line that was written, or by a checkpoint. Such a line may have no loss.
    pub step: u64,
    /// What that took.
    pub totals: Totals,
    /// Steps that its plan has; None where it cannot be read.
    pub steps: Option<u64>,
    /// What its plan validates on, key by key.
    pub validated_on: Option<[(&'static str, String); 5]>,
    /// Logged steps, with the mean cross-entropy of all tokens (`full_loss`); where an early exit
    /// left none of these, of the kept ones.
    pub training: Vec<Point>,
    /// Whether `training` is of the kept tokens.
    pub kept_only: bool,
    /// Validations.
    pub validation: Vec<Point>,
}

/// A run's state in numbers, for programs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunState {
    /// The folder.
    pub run: PathBuf,
    /// Whether it is over.
    pub finished: bool,
    /// Whether a process of this machine trains it.
    pub running: bool,
    /// Steps done, at the last line that was written or the last checkpoint.
    pub step: u64,
    /// Steps that its plan has.
    pub steps: Option<u64>,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Cross-entropy of the last logged step.
    pub train_loss: Option<f64>,
    /// Cross-entropy of the last validation.
    pub val_loss: Option<f64>,
    /// The lowest of all validations.
    pub best_val_loss: Option<f64>,
}

/// The runs that `names` mean: run folders, and folders of runs (a comparison, a quickstart).
pub fn find(names: &[PathBuf]) -> Result<Vec<Place>> {
    let mut found: Vec<Place> = Vec::new();
    for name in names {
        let next = found.iter().map(|p| p.style + 1).max().unwrap_or(0);
        let places = match State::read(name)? {
            _ if is_run(name) => vec![Place::alone(name.clone(), shown(name), next)],
            Some(state) => of_comparison(name, &state, next),
            None => below(name, next)?,
        };
        if places.is_empty() {
            return Err(Error::data(format!(
                "{}: expected a run folder (with {METRICS_FILE}) or a folder of runs, found {}",
                name.display(),
                match name.is_dir() {
                    true => "no run in it".to_string(),
                    false => format!("no folder{}", did_you_mean(name, Path::is_dir)),
                }
            )));
        }
        let known = |p: &Place| found.iter().any(|f| f.run == p.run);
        let new: Vec<Place> = places.into_iter().filter(|p| !known(p)).collect();
        found.extend(new);
    }
    Ok(found)
}

/// Whether it is known which runs `name` stands for. In another folder of runs more may begin.
pub fn is_closed(name: &Path) -> bool {
    is_run(name) || name.join(FILE).is_file()
}

fn is_run(folder: &Path) -> bool {
    folder.join(METRICS_FILE).is_file() || folder.join(CONFIG_FILE).is_file()
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The runs of a comparison, begun or not, with the looks of its own page.
fn of_comparison(out: &Path, state: &State, first: usize) -> Vec<Place> {
    let mut places = Vec::new();
    let mut others = 0;
    for arm in &state.arms {
        let style = if arm.label == state.baseline {
            0
        } else {
            others += 1;
            others
        };
        for &seed in &state.seeds {
            let run = folder(out, &arm.label, seed);
            let (arm, name) = (arm.label.clone(), format!("{} seed {seed}", arm.label));
            places.push(Place { run, name, arm, style: first + style });
        }
    }
    places
}

fn below(top: &Path, first: usize) -> Result<Vec<Place>> {
    let mut runs = Vec::new();
    collect(top, DEPTH, &mut runs)?;
    let place = |(i, run): (usize, PathBuf)| {
        let name = run.strip_prefix(top).map_or_else(|_| shown(&run), shown);
        Place::alone(run, name, first + i)
    };
    Ok(runs.into_iter().enumerate().map(place).collect())
}

fn collect(folder: &Path, depth: usize, runs: &mut Vec<PathBuf>) -> Result<()> {
    for child in if folder.is_dir() { children(folder)? } else { Vec::new() } {
        if is_run(&child) {
            runs.push(child);
        } else if depth > 1 && child.is_dir() {
            collect(&child, depth - 1, runs)?;
        }
    }
    Ok(())
}

impl Place {
    fn alone(run: PathBuf, name: String, style: usize) -> Self {
        Self { run, arm: name.clone(), name, style }
    }

    /// What changes when the run has written more.
    pub fn fingerprint(&self) -> Fingerprint {
        let metrics = std::fs::metadata(self.run.join(METRICS_FILE)).ok();
        let size = metrics.as_ref().map_or(0, std::fs::Metadata::len);
        (is_finished(&self.run), size, metrics.and_then(|m| m.modified().ok()))
    }

    /// Reads what is there. A line that is not whole yet, or damaged, is passed over; a run that has
    /// written nothing yet is no error.
    pub fn read(&self) -> Result<Live> {
        // First, so that a run which ends meanwhile is read again.
        let finished = is_finished(&self.run);
        let (mut full, mut kept, mut validation) = (Vec::new(), Vec::new(), Vec::new());
        let path = self.run.join(METRICS_FILE);
        let saved = list(&self.run).ok().and_then(|mut all| all.pop());
        let mut step = saved.as_ref().map_or(0, |(step, _)| *step);
        let mut totals =
            saved.and_then(|(_, path)| Some((&Glance::of(&path).ok()?.counters).into()));
        if path.exists() {
            each_metric(&path, |line| {
                step = step.max(line["step"].as_u64().unwrap_or(0));
                totals = Totals::latest(totals, Totals::of(&line));
                full.extend(Point::of(&line, "full_loss"));
                kept.extend(Point::of(&line, "kept_loss"));
                validation.extend(Point::of(&line, "val_loss"));
            })?;
        }
        let plan = plan_of(&self.run).ok();
        let steps = plan.as_ref().map(|plan| plan.steps);
        // A run that was made longer has the model of its earlier end.
        let longer = steps.is_some_and(|steps| step > 0 && step < steps);
        let kept_only = full.is_empty() && !kept.is_empty();
        Ok(Live {
            place: self.clone(),
            finished: finished && !longer,
            running: holder(&self.run).is_some(),
            step,
            totals: totals.unwrap_or_default(),
            steps,
            validated_on: plan.map(validated_on),
            training: if kept_only { kept } else { full },
            kept_only,
            validation,
        })
    }
}

/// The keys that say what a validation loss is of: two that differ in one do not compare.
fn validated_on(plan: Plan) -> [(&'static str, String); 5] {
    [
        ("data.dir", plan.data.dir.unwrap_or_default()),
        ("data.context", plan.data.context.to_string()),
        ("eval.rows", plan.eval.rows.to_string()),
        ("eval.tokens", plan.eval.tokens.to_string()),
        ("eval.stride", plan.eval.stride.to_string()),
    ]
}

impl Live {
    /// The last thing that was written.
    pub fn last(&self) -> Option<&Point> {
        let ends = [self.training.last(), self.validation.last()];
        ends.into_iter().flatten().max_by_key(|p| p.step)
    }

    /// The validation of lowest loss.
    pub fn best(&self) -> Option<&Point> {
        self.validation.iter().min_by(|a, b| a.loss.total_cmp(&b.loss))
    }

    /// In numbers.
    pub fn state(&self) -> RunState {
        RunState {
            run: self.place.run.clone(),
            finished: self.finished,
            running: self.running,
            step: self.step,
            steps: self.steps,
            tokens: self.totals.tokens,
            seconds: self.totals.seconds,
            train_loss: self.training.last().map(|p| p.loss),
            val_loss: self.validation.last().map(|p| p.loss),
            best_val_loss: self.best().map(|p| p.loss),
        }
    }

    /// Seconds that are left at the speed so far, while it trains.
    pub fn left(&self) -> Option<f64> {
        let last = self.last().filter(|p| p.step > 0 && self.running)?;
        let steps = self.steps?.checked_sub(last.step)?;
        Some(steps as f64 * last.seconds / last.step as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::checkpoint::RunLock;
    use std::fs;

    fn step(step: u64, loss: f64) -> String {
        format!(
            "{{\"step\":{step},\"full_loss\":{loss},\"kept_loss\":9.0,\"tokens\":{},\"flops\":{step}.0,\"seconds\":{step}.5}}\n",
            step * 64
        )
    }

    fn validation(step: u64, loss: f64) -> String {
        format!(
            "{{\"step\":{step},\"val_loss\":{loss},\"tokens\":{},\"flops\":{step}.0,\"seconds\":{step}.5}}\n",
            step * 64
        )
    }

    /// A run folder with that text of metrics.
    fn run(at: &Path, metrics: &str) -> PathBuf {
        fs::create_dir_all(at).unwrap();
        fs::write(at.join(CONFIG_FILE), "steps = 8\n").unwrap();
        fs::write(at.join(METRICS_FILE), metrics).unwrap();
        at.to_path_buf()
    }

    fn read(runs: &[PathBuf]) -> Vec<Live> {
        find(runs).unwrap().iter().map(|p| p.read().unwrap()).collect()
    }

    #[test]
    fn a_run_that_is_being_written_is_read_up_to_its_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let text = validation(0, 6.0)
            + &step(2, 5.0)
            + "\0\0garbage\n"
            + &step(4, 4.5)
            + &validation(4, 4.75);
        let at =
            run(&folder.path().join("a"), &(text.clone() + "{\"step\":6,\"full_loss\":4.2,\"tok"));
        let place = &find(std::slice::from_ref(&at)).unwrap()[0];
        let live = place.read().unwrap();
        let steps: Vec<u64> = live.training.iter().map(|p| p.step).collect();
        assert_eq!((steps, live.validation.len(), live.finished), (vec![2, 4], 2, false));
        let state = live.state();
        assert_eq!((state.step, state.steps, state.tokens), (4, Some(8), 256));
        assert_eq!((state.train_loss, state.best_val_loss), (Some(4.5), Some(4.75)));
        assert_eq!(live.left(), None, "nobody trains it");
        let lock = RunLock::acquire(&at).unwrap();
        assert_eq!(place.read().unwrap().left(), Some(4.5), "as long as it took so far");
        drop(lock);

        let before = place.fingerprint();
        assert_eq!(place.fingerprint(), before);
        run(&at, &(text + &step(6, 4.2)));
        assert_ne!(place.fingerprint(), before, "it has grown");
        assert_eq!(place.read().unwrap().state().step, 6);
        // A step whose losses were not finite is one that was done.
        let blank = "{\"step\":7,\"full_loss\":null,\"kept_loss\":null,\"tokens\":7,\"flops\":1.0,\"seconds\":7.5}\n";
        run(&at, &(validation(0, 6.0) + blank));
        assert_eq!(place.read().unwrap().state().step, 7);
        run(&at, &(validation(0, 6.0) + &step(6, 4.2)));
        fs::create_dir(at.join("model")).unwrap();
        assert!(!place.read().unwrap().finished, "it was made longer after its end");
        fs::write(at.join(CONFIG_FILE), "steps = 6\n").unwrap();
        let live = place.read().unwrap();
        assert!(live.finished && live.left().is_none());
    }

    #[test]
    fn a_run_without_a_line_yet_and_one_without_full_losses_are_shown() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        run(&empty, "");
        fs::remove_file(empty.join(METRICS_FILE)).unwrap();
        let early = run(
            &folder.path().join("early"),
            "{\"step\":2,\"full_loss\":null,\"kept_loss\":5.5,\"tokens\":64,\"flops\":1.0,\"seconds\":1.0}\n",
        );
        let found = read(&[empty, early]);
        assert!(found[0].training.is_empty() && found[0].last().is_none() && !found[0].kept_only);
        assert!(found[1].kept_only && found[1].training[0].loss == 5.5);
        let page = page(&found, Some(5));
        assert!(page.contains("nothing yet") && page.contains("kept tokens"), "{page}");
    }

    #[test]
    fn folders_of_runs_are_opened_and_a_run_is_there_once() {
        let folder = tempfile::tempdir().unwrap();
        let a = run(&folder.path().join("a"), &step(1, 5.0));
        run(&folder.path().join("deep/er/b"), &step(1, 5.0));
        let found = find(&[a, folder.path().to_path_buf()]).unwrap();
        let names: Vec<(&str, usize)> = found.iter().map(|p| (p.name.as_str(), p.style)).collect();
        assert_eq!(names.len(), 2);
        assert!(names[0].0.ends_with("/a") && names[0].1 == 0, "{names:?}");
        assert_eq!(names[1].0, "deep/er/b");
        assert_ne!(names[1].1, names[0].1);
        let nothing = tempfile::tempdir().unwrap();
        for (place, part) in
            [(nothing.path().to_path_buf(), "no run in it"), ("not/there".into(), "no folder")]
        {
            let message = find(&[place]).unwrap_err().to_string();
            assert!(
                message.contains("expected a run folder") && message.ends_with(part),
                "{message}"
            );
        }
    }

    #[test]
    fn a_comparisons_runs_have_the_colours_of_its_page() {
        let folder = tempfile::tempdir().unwrap();
        let arms = ["plain", "loss", "random"];
        let mut s = super::super::testing::summary(
            arms.iter().map(|l| super::super::testing::arm(l, &[4.0, 4.1], 1.0)).collect(),
        );
        (s.state.baseline, s.state.baseline_named) = ("loss".into(), true);
        s.state.write(folder.path()).unwrap();
        for label in ["plain", "random"] {
            for seed in [1, 2] {
                run(&super::folder(folder.path(), label, seed), &step(1, 5.0));
            }
        }
        let found = find(&[folder.path().to_path_buf()]).unwrap();
        let found: Vec<(&str, usize)> = found.iter().map(|p| (p.name.as_str(), p.style)).collect();
        assert_eq!(
            found,
            [
                ("plain seed 1", s.style(0)),
                ("plain seed 2", s.style(0)),
                ("loss seed 1", 0),
                ("loss seed 2", 0),
                ("random seed 1", s.style(2)),
                ("random seed 2", s.style(2))
            ],
            "those that have not begun, too: a watcher waits for them"
        );
        let live = read(&[folder.path().to_path_buf()]);
        assert!(live[2].last().is_none() && !live[2].finished && live[4].last().is_some());
        assert!(is_closed(folder.path()) && is_closed(&live[0].place.run));
        assert!(!is_closed(&folder.path().join("runs")), "more may begin there");
    }

    #[test]
    fn the_page_has_both_curves_on_three_axes_and_loads_itself_while_told() {
        let folder = tempfile::tempdir().unwrap();
        let text = validation(0, 6.0) + &step(2, 5.0) + &step(4, 4.5) + &validation(4, 4.75);
        let runs =
            [run(&folder.path().join("<script>a"), &text), run(&folder.path().join("b"), &text)];
        let found = read(&runs);
        let watched = page(&found, Some(5));
        assert!(watched.contains("http-equiv=\"refresh\" content=\"5\""));
        assert_eq!(watched.matches("<figure class=\"chart\"").count(), 6);
        for axis in ["optimizer steps", "training tokens", "training time (seconds)"] {
            assert_eq!(watched.matches(&format!("data-x=\"{axis}\"")).count(), 2, "{axis}");
        }
        assert!(watched.contains("&lt;script&gt;a") && !watched.contains("<script>a"));
        assert!(watched.contains("step 4 of 8") && watched.contains("4.7500"));
        assert!(!page(&found, None).contains("http-equiv"));
    }

    #[test]
    fn runs_on_other_data_have_no_lowest_loss_without_a_caveat() {
        let folder = tempfile::tempdir().unwrap();
        let runs = ["a", "b"].map(|n| run(&folder.path().join(n), &validation(0, 6.0)));
        let caveat = "so their losses do not compare";
        assert!(!page(&read(&runs), None).contains(caveat));
        for (other, differing) in [
            ("[data]\ndir = 'other'\n", "data.dir differs"),
            ("[eval]\nrows = 3\n", "eval.rows differs"),
            ("[data]\ncontext = 64\n", "data.context, eval.stride differ"),
            ("[eval]\nstride = 64\n", "eval.stride differs"),
        ] {
            fs::write(runs[1].join(CONFIG_FILE), format!("steps = 8\n{other}")).unwrap();
            let page_of_both = page(&read(&runs), None);
            let said = page_of_both.contains(caveat) && page_of_both.contains(differing);
            assert!(said, "{other}: {page_of_both:.2000}");
            assert!(!page(&read(&runs[1..]), None).contains(caveat), "one run");
        }
    }

    #[test]
    fn two_validations_are_a_line_and_not_a_dash() {
        let folder = tempfile::tempdir().unwrap();
        let text = validation(0, 6.0) + &validation(8, 4.0);
        let found = read(&[run(&folder.path().join("a"), &text)]);
        let page = page(&found, None);
        let chart = page.split("id=\"v-steps-l\"").nth(1).unwrap();
        let path = chart.split("<path class=\"line\" d=\"M").nth(1).unwrap();
        let heights: Vec<f64> = (path.split('"').next().unwrap().split('L'))
            .map(|point| point.split(' ').nth(1).unwrap().parse().unwrap())
            .collect();
        assert!(heights.iter().all(|v| (0.0..=330.0).contains(v)), "{heights:?}");
    }

    #[test]
    fn many_points_become_means_and_none_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let text: String =
            (1..=1000).map(|i| step(i, if i % 2 == 0 { 4.0 } else { 5.0 })).collect();
        let found = read(&[run(&folder.path().join("a"), &text)]);
        let thin = page::thinned(&found[0].training);
        assert!((150..=300).contains(&thin.len()), "{}", thin.len());
        assert!(thin.iter().all(|p| (p.loss - 4.5).abs() < 1e-9));
        assert_eq!(page::thinned(&found[0].training[..300]), found[0].training[..300]);
    }
}
