//! `report`: the page of loss curves, of finished runs and of one that is still training.

use crate::support::place::{Place, TINY, data, stop};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

fn pretrain<'a>(data: &'a str, out: &'a str, steps: &'a str) -> Vec<&'a str> {
    let own = ["pretrain", "--data", data, "--method", "clm", "--steps", steps, "--out", out, "-q"];
    let often = ["--set", "eval.every=2", "--set", "eval.rows=2"];
    own.into_iter().chain(TINY).chain(often).collect()
}

/// The page, once it is there and `fits`.
fn wait_for(page: &Path, child: &mut Child, fits: impl Fn(&str) -> bool) -> String {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let text = fs::read_to_string(page).unwrap_or_default();
        if fits(&text) {
            return text;
        }
        assert!(child.try_wait().unwrap().is_none(), "the watcher has ended; {text}");
        assert!(Instant::now() < give_up, "the page did not become what it should; {text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn finished_runs_become_a_page_and_numbers() {
    let place = Place::new();
    let data = data();
    for (out, steps) in [("runs/a", "4"), ("runs/b", "2")] {
        let (code, _, error) = place.run(&pretrain(&data, out, steps));
        assert_eq!(code, 0, "{error}");
    }
    let json = place.json(&["report", "runs/a", "runs/b", "--out", "page.html"]);
    let runs = json["runs"].as_array().unwrap();
    assert_eq!((runs.len(), &json["page"]), (2, &Value::from("page.html")));
    assert_eq!(
        (&runs[0]["step"], &runs[0]["steps"], &runs[0]["finished"]),
        (&4.into(), &4.into(), &true.into())
    );
    let last = |run: &str| {
        let lines = place.metrics(run);
        lines.iter().filter_map(|l| l["val_loss"].as_f64()).next_back().unwrap()
    };
    assert_eq!(runs[1]["val_loss"], last("runs/b"));
    let page = fs::read_to_string(place.path("page.html")).unwrap();
    crate::compare::check_well_formed(&page);
    assert!(page.contains("2 runs, all finished") && !page.contains("http-equiv"), "{page:.3000}");
    assert!(page.contains(&format!("{:.4}", last("runs/a"))));
    for outside in ["http:", "https:", "src=", "<link", "@import", "NaN"] {
        assert!(!page.contains(outside), "{outside}");
    }

    // Their folder means both; --watch has nothing to wait for; a table is for people.
    let (code, out, _) = place.run(&["report", "runs", "--watch"]);
    assert!(code == 0 && out.contains("page: curves.html") && out.contains("finished"), "{out}");
    assert!(place.path("curves.html").exists());
    place.refused(&["report", "elsewhere"], 3, &["expected a run folder", "no folder"]);
    place.refused(&["report", "runs", "--out", "runs"], 2, &["runs"]);
}

#[test]
fn a_run_that_trains_is_drawn_as_far_as_it_is_until_it_is_finished() {
    let place = Place::new();
    let data = data();
    // Stopped early, so that it is for certain unfinished while it is watched.
    let begin = pretrain(&data, "run", "400");
    let mut training = place.command(&begin).stderr(Stdio::null()).spawn().unwrap();
    assert!(stop(&mut training, &place.path("run/metrics.jsonl"), 6, "-INT"), "it ended too soon");
    training.wait().unwrap();
    // Nobody trains it: it is called what `runs` calls it, and no time is left.
    let (_, out, _) = place.run(&["report", "run", "--out", "stopped.html"]);
    assert!(out.contains(" stopped ") && !out.contains("not finished"), "{out}");
    assert!(out.lines().nth(1).unwrap().trim_end().ends_with('-'), "{out}");
    let page = fs::read_to_string(place.path("stopped.html")).unwrap();
    assert!(page.contains("not running") && !page.contains("about"), "{page:.2500}");
    let metrics = place.path("run/metrics.jsonl");
    let whole = fs::read_to_string(&metrics).unwrap();
    // A crash in the middle of a line.
    fs::write(&metrics, whole.clone() + "{\"step\":399,\"full_loss\":1.0,\"tok").unwrap();

    let page = place.path("curves.html");
    let watch = ["report", "run", "--watch"];
    let mut watcher =
        place.command(&watch).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let first = wait_for(&page, &mut watcher, |text| text.contains("http-equiv=\"refresh\""));
    assert!(first.contains(" of 400 (") && !first.contains("step 399"), "{first:.2500}");

    // It is written again when the run goes on, and the watcher ends with the run.
    let resume = ["pretrain", "--resume", "--out", "run", "-q"];
    let mut last = fs::read_to_string(&metrics).unwrap();
    last.truncate(whole.len());
    last += "{\"step\":398,\"full_loss\":1.5,\"kept_loss\":1.5,\"tokens\":1,\"flops\":1.0,\"seconds\":1.0}\n";
    fs::write(&metrics, last).unwrap();
    let grown = wait_for(&page, &mut watcher, |text| text.contains("step 398 of 400"));
    assert!(grown.contains("http-equiv"));
    fs::write(&metrics, &whole).unwrap();
    let (code, _, error) = place.run(&resume);
    assert_eq!(code, 0, "{error}");
    let ended = watcher.wait_with_output().unwrap();
    assert!(ended.status.success());
    let out = String::from_utf8(ended.stdout).unwrap();
    assert!(out.contains("finished") && out.contains("400"), "{out}");
    let text = fs::read_to_string(&page).unwrap();
    assert!(!text.contains("http-equiv") && text.contains("finished, 400 steps"));
}

#[test]
fn an_interrupted_watcher_leaves_a_page_that_stays() {
    let place = Place::new();
    fs::create_dir(place.path("run")).unwrap();
    fs::write(place.path("run/config.toml"), "steps = 9\n").unwrap();
    let page = place.path("page.html");
    let watch = ["report", "run", "--watch", "--out", "page.html"];
    let mut watcher = place.command(&watch).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&page, &mut watcher, |text| {
        text.contains("http-equiv") && text.contains("nothing yet")
    });
    let id = watcher.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let ended = watcher.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130));
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("page.html shows the runs up to here"), "{said}");
    assert!(!fs::read_to_string(&page).unwrap().contains("http-equiv"));
}
