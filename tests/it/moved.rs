//! A run goes on wherever its project stands: models and data are known by their content, and
//! names are hints.

use crate::support::place::{Place, contents, copy_data, copy_folder, data, save_random};
use crate::support::tiny;
use serde_json::{Value, json};
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
        save_random(&place.path("models/teacher"), tiny::VOCAB, 32, true);
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

fn changed_json(file: &Path, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let mut value: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    change(value.as_object_mut().unwrap());
    fs::write(file, value.to_string()).unwrap();
}

#[test]
fn what_changes_a_models_function_or_a_validation_loss_is_the_runs_too() {
    let place = Place::new();
    project(&place, "p", false);
    let run = place.path("p/runs/r").display().to_string();
    let resume = ["distill", "--resume", "--out", &run];
    for (copy, part) in [("heads", "n_head"), ("epsilon", "layer_norm_epsilon")] {
        copy_folder(&place.path("p/models/teacher"), &place.path(copy));
        changed_json(&place.path(copy).join("config.json"), |config| {
            let value = if part == "n_head" { json!(1) } else { json!(1e-6) };
            assert_ne!(config.insert(part.into(), value.clone()), Some(value));
        });
        let args = [&resume[..], &["--teacher", copy]].concat();
        place.refused(&args, 2, &["belongs to another run", "teacher's config.json", part]);
    }
    copy_data(&place.path("other"));
    fs::copy(place.path("other/train.bin"), place.path("other/valid.bin")).unwrap();
    let args = [&resume[..], &["--data", "other"]].concat();
    place.refused(&args, 2, &["validation tokens (SHA-256)"]);
    fs::remove_file(place.path("other/valid.bin")).unwrap();
    place.refused(&args, 2, &["validation tokens (SHA-256)", "none now"]);
    // Among folders of one name, too, validation tokens tell which is the run's.
    fs::create_dir(place.path("data")).unwrap();
    fs::rename(place.path("other"), place.path("data/d")).unwrap();
    let (code, _, stderr) = place.run(&resume);
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn a_finished_run_needs_nothing_that_it_read() {
    let place = Place::new();
    let root = place.path("p");
    project(&place, "p", false);
    let run = root.join("runs/r");
    let resume = |more: &[&str]| {
        let args = [&["distill", "--resume", "--out", "runs/r"][..], more].concat();
        let done = place.command(&args).current_dir(&root).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
    };
    assert_eq!(resume(&[]).0, 0, "its last two steps");
    let files = || {
        let mut found = contents(&run);
        found.retain(|path, _| !path.ends_with(".lock"));
        found
    };
    let before = files();
    let (_, whole, said) = resume(&[]);
    assert!(said.contains("the run is finished, and stays as it is"), "{said}");
    // What is there and has become another is refused, whatever else is gone.
    let gone = |name: &str| fs::rename(root.join(name), root.join("gone")).unwrap();
    let back = |name: &str| fs::rename(root.join("gone"), root.join(name)).unwrap();
    gone("data");
    save_random(&root.join("other"), tiny::VOCAB, 32, true);
    let (code, _, said) = resume(&["--teacher", "other"]);
    assert!(code == 2 && said.contains("teacher's weights (SHA-256)"), "{said}");
    back("data");
    gone("models");
    copy_data(&root.join("other-data"));
    fs::copy(root.join("other-data/train.bin"), root.join("other-data/valid.bin")).unwrap();
    let (code, _, said) = resume(&["--data", "other-data"]);
    assert!(code == 2 && said.contains("validation tokens (SHA-256)"), "{said}");
    // As is another name of which nothing is there.
    for (more, code) in [(["--data", "nowhere"], 3), (["--teacher", "./nowhere"], 3)] {
        let (found, _, said) = resume(&more);
        assert!(found == code && said.contains("nowhere"), "{found}: {said}");
    }
    assert!(files() == before);
    // What is gone is not asked for, also by its name.
    for folder in ["data", "student"] {
        fs::remove_dir_all(root.join(folder)).unwrap();
    }
    for more in [&[][..], &["--teacher", "models/teacher", "--data", "data/d"]] {
        let (code, out, said) = resume(more);
        assert!(code == 0 && out == whole, "{more:?}: {out}{said}");
    }
    // Nor are steps made again whose checkpoint was removed.
    fs::remove_dir_all(run.join("checkpoints/step-00000004")).unwrap();
    let before = files();
    let (code, out, said) = resume(&[]);
    assert!(code == 0 && out == whole && files() == before, "{out}{said}");
    let (code, _, said) = resume(&["--steps", "6"]);
    assert!(code != 0 && files() == before, "{said}");
}

#[test]
fn a_checkpoint_that_does_not_know_its_teacher_asks_which_of_two_it_was() {
    let place = Place::new();
    let whole = project(&place, "p", false);
    let run = place.path("p/runs/r");
    let out = run.display().to_string();
    let resume = ["distill", "--resume", "--out", &out];
    changed_json(&run.join("checkpoints/step-00000002/manifest.json"), |manifest| {
        for field in ["teacher_hash", "teacher_function", "student_hash", "student_function"] {
            manifest.remove(field).unwrap();
        }
    });
    copy_folder(&place.path("p/models/teacher"), &place.path("models/teacher"));
    let (code, _, stderr) = place.run(&resume);
    assert_eq!(code, 0, "a copy is the same: {stderr}");
    assert_eq!(cut(&run), whole);
    fs::remove_dir_all(place.path("models")).unwrap();
    save_random(&place.path("models/teacher"), tiny::VOCAB, 32, true);
    place.refused(&resume, 2, &["teacher = \"models/teacher\"", "which differ", "--teacher"]);
    assert!(!run.join("model").exists());
    let teacher = place.path("p/models/teacher").display().to_string();
    let (code, _, stderr) = place.run(&[&resume[..], &["--teacher", &teacher]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(cut(&run), whole);
}

#[test]
fn a_new_run_like_an_earlier_one_reads_what_that_one_read() {
    let place = Place::new();
    project(&place, "p", false);
    let read = |run: &str| {
        let checkpoints = place.path(run).join("checkpoints");
        let newest = fs::read_dir(checkpoints).unwrap().map(|e| e.unwrap().path()).max().unwrap();
        let manifest: Value =
            serde_json::from_slice(&fs::read(newest.join("manifest.json")).unwrap()).unwrap();
        ["data_hash", "valid_hash", "teacher_hash", "student_hash"]
            .map(|field| manifest[field].as_str().unwrap().to_string())
    };
    for decoys in [false, true] {
        if decoys {
            save_random(&place.path("models/teacher"), tiny::VOCAB, 32, true);
            save_random(&place.path("student"), tiny::VOCAB, 32, true);
        }
        let out = if decoys { "second" } else { "first" };
        let args = ["distill", "p/runs/r/config.toml", "--steps", "1", "--out", out];
        let (code, _, stderr) = place.run(&args);
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(read(out), read("p/runs/r"));
    }
}

#[cfg(unix)]
#[test]
fn links_decoys_and_names_of_presets_lead_no_run_astray() {
    use std::os::unix::fs::symlink;
    let place = Place::new();
    let whole = project(&place, "p", false);
    symlink(place.path("p/runs"), place.path("linked")).unwrap();
    symlink(place.path("p/runs/r/config.toml"), place.path("linked.toml")).unwrap();
    save_random(&place.path("models/teacher"), tiny::VOCAB, 32, true);
    save_random(&place.path("student"), tiny::VOCAB, 32, true);
    let (code, _, stderr) = place.run(&["distill", "--resume", "--out", "linked/r"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(cut(&place.path("p/runs/r")), whole);
    for (config, out) in [("linked/r", "one"), ("linked.toml", "two")] {
        let (code, _, stderr) = place.run(&["distill", config, "--steps", "1", "--out", out]);
        assert_eq!(code, 0, "{stderr}");
        assert!(stderr.contains("student = \"student\" is found at"), "{stderr}");
    }
    // Of what is nowhere it is said that another thing of its name is read.
    fs::remove_dir_all(place.path("p/student")).unwrap();
    let (code, _, stderr) = place.run(&["distill", "p/runs/r", "--steps", "1", "--out", "three"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("student = \"student\" is not what the run there read"), "{stderr}");
}

#[test]
fn a_student_of_a_presets_name_is_the_folder_that_the_run_began_with() {
    let place = Place::new();
    let root = place.path("p");
    save_random(&root.join("tiny"), tiny::VOCAB, 16, true);
    let data = data();
    let args = ["pretrain", "--data", &data, "--student", "tiny", "--set", "data.context=16"];
    let more = ["--set", "data.rows=8", "--steps", "4", "--set", "checkpoint.every=2", "--out"];
    let args = [&args[..], &more, &["r"]].concat();
    assert!(place.command(&args).current_dir(&root).status().unwrap().success());
    let whole = cut(&root.join("r"));
    let (code, _, stderr) = place.run(&["pretrain", "--resume", "--out", "p/r"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(cut(&root.join("r")), whole);
    let (code, _, stderr) = place.run(&["pretrain", "p/r", "--steps", "1", "--out", "new"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("student = \"tiny\" is found at"), "{stderr}");
}
