//! A run goes on wherever its project stands: models and data are known by their content, and
//! names are hints.

use crate::support::place::{Place, copy_data, copy_folder, save_random};
use crate::support::tiny;
use std::fs;
use std::path::Path;

/// The project in `folder`: data, teacher and student, and a run of four steps of which two are
/// left. Returns the weights that it ends with.
fn project(place: &Place, folder: &str, absolute: bool) -> Vec<u8> {
    let root = place.path(folder);
    save_random(&root.join("models/teacher"), tiny::VOCAB, 16, true);
    save_random(&root.join("student"), tiny::VOCAB, 16, true);
    copy_data(&root.join("data/d"));
    let name = |name: &str| match absolute {
        true => root.join(name).display().to_string(),
        false => name.to_string(),
    };
    let (data, teacher, student) = (name("data/d"), name("models/teacher"), name("student"));
    let args = [
        &["distill", "--data", &data, "--teacher", &teacher, "--student", &student][..],
        &["--set", "data.context=16", "--set", "data.rows=8", "--steps", "4"],
        &["--set", "checkpoint.every=2", "--out", "runs/r"],
    ]
    .concat();
    let done = place.command(&args).current_dir(&root).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    cut(&root.join("runs/r"))
}

/// Takes the second half of a run away; the weights that it ended with.
fn cut(run: &Path) -> Vec<u8> {
    let weights = fs::read(run.join("model/model.safetensors")).unwrap();
    fs::remove_dir_all(run.join("model")).unwrap();
    fs::remove_dir_all(run.join("checkpoints/step-00000004")).unwrap();
    weights
}

#[test]
fn a_run_goes_on_from_another_folder_and_after_a_move() {
    let place = Place::new();
    for absolute in [false, true] {
        let root = if absolute { "absolute" } else { "relative" };
        let whole = project(&place, root, absolute);
        let at = |name: &str| place.path(root).join(name).display().to_string();
        let run = at("runs/r");
        let (data, teacher, student) = (at("data/d"), at("models/teacher"), at("student"));
        let named = ["--data", &data, "--teacher", &teacher, "--student", &student];
        for more in [&[][..], &[run.as_str()], &named[..2], &named] {
            let args = [&["distill"], more, &["--resume", "--out", &run]].concat();
            let (code, _, stderr) = place.run(&args);
            assert_eq!(code, 0, "{args:?}: {stderr}");
            assert_eq!(cut(Path::new(&run)), whole, "{args:?}");
        }
        // What the folders are called from elsewhere is other content: the run's own is found.
        save_random(&place.path("models/teacher"), tiny::VOCAB, 16, false);
        // The project moves, and its student is no longer needed.
        let moved = format!("{root}-moved");
        fs::rename(place.path(root), place.path(&moved)).unwrap();
        fs::remove_dir_all(place.path(&moved).join("student")).unwrap();
        let run = format!("{moved}/runs/r");
        let (code, _, stderr) = place.run(&["distill", "--resume", "--out", &run]);
        assert_eq!(code, 0, "{stderr}");
        assert!(stderr.contains("data.dir = ") && stderr.contains("is found at"), "{stderr}");
        assert_eq!(cut(&place.path(&run)), whole);
    }
}

#[test]
fn what_is_not_the_runs_is_refused_whatever_it_is_called() {
    let place = Place::new();
    project(&place, "p", false);
    let run = place.path("p/runs/r").display().to_string();
    copy_folder(&place.path("p/student"), &place.path("other"));
    let weights = place.path("other/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    copy_data(&place.path("same"));
    for (more, part) in [
        (["--teacher", "other"], "teacher's weights (SHA-256)"),
        (["--student", "other"], "student's first weights (SHA-256)"),
        (["--student", "tiny"], "student: "),
    ] {
        let args = [&["distill", "--resume", "--out", &run][..], &more].concat();
        place.refused(&args, 2, &["belongs to another run", part]);
    }
    let nowhere = ["distill", "--resume", "--out", &run, "--data", "nowhere"];
    place.refused(&nowhere, 3, &["nowhere"]);
    let (code, _, stderr) = place.run(&["distill", "--resume", "--out", &run, "--data", "same"]);
    assert_eq!(code, 0, "a copy of the data: {stderr}");
}
