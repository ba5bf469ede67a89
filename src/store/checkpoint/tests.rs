use super::*;
use crate::config::{self, Overrides, RunFile};
use crate::model::ParamSpec;
use crate::progress::Silent;
use crate::rng::{Rng, Stream};
use crate::testing::Notes;
use candle_core::Tensor;
use serde_json::json;
use std::fs;

const RUN_FILE: &str = r#"
method = "eslm"
seed = 7
steps = 100
teacher = "t"
student = "tiny"
[data]
context = 8
rows = 4
[select]
alpha = 0.30000000000000004
[objective]
temperature = 2.0
[machine]
micro_rows = 4
"#;

fn plan() -> Plan {
    let file = RunFile { name: "run.toml".into(), text: RUN_FILE.into() };
    config::load(Some(&file), &Overrides::default()).unwrap().plan
}

fn random(layout: &Layout, sub: u32) -> ParamSet {
    let rng = Rng::new(5, Stream::Init);
    let tensors = layout.entries().iter().enumerate().map(|(i, ParamSpec { shape, .. })| {
        let n = shape.iter().product::<usize>() as u64;
        let values: Vec<f32> = (0..n).map(|j| rng.normal(sub + 50 * i as u32, j) as f32).collect();
        Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap()
    });
    ParamSet::new(layout.clone(), tensors.collect())
}

fn state(step: u64) -> TrainState {
    let config = Gpt2Config::new(11, 8, 6, 1, 2);
    let layout = Layout::new(&config);
    let flops = Flops { student_forward: 1e17 / 3.0, teacher: 1e21 / 7.0, ..Flops::default() };
    let counters = Counters {
        step,
        tokens: 32 * step,
        cursor: 4 * step,
        flops,
        seconds: 0.1 + step as f64 / 3.0,
        best_val_loss: Some(2.0 / 3.0),
        last_validation: Some((step / 2, 5.0 / 7.0)),
        skipped: step / 4,
    };
    TrainState {
        plan: plan(),
        config,
        params: random(&layout, 1),
        optimizer: adamw::State::whole(step - step / 4, random(&layout, 2), random(&layout, 3)),
        counters,
        selector: json!({ "alpha": 0.1 + 0.2, "last_cvar": 1.0 / 3.0, "sums": [std::f64::consts::PI * 1e-30] }),
        inputs: Inputs {
            data_hash: "d1".into(),
            valid_hash: Some("v1".into()),
            tokenizer_hash: "t1".into(),
            models: Models {
                teacher_hash: Some("w1".into()),
                teacher_function: Some("f1".into()),
                teacher_revision: Some("org/teacher@c1".into()),
                ..Models::default()
            },
        },
    }
}

fn keeping(keep: usize, keep_best: usize) -> CheckpointPlan {
    CheckpointPlan { every: 1, keep, keep_best }
}

/// A run folder with checkpoints of these steps, all kept.
fn run_with(steps: &[u64]) -> (tempfile::TempDir, RunLock) {
    let folder = tempfile::tempdir().unwrap();
    let run = RunLock::acquire(&folder.path().join("run")).unwrap();
    for &step in steps {
        save(&run, &state(step), &SaveOptions::default(), &keeping(0, 0)).unwrap();
    }
    (folder, run)
}

fn steps_of(run: &RunLock) -> Vec<u64> {
    list(run.dir()).unwrap().into_iter().map(|(step, _)| step).collect()
}

fn load_with(path: &Path, change: impl FnOnce(&mut TrainState)) -> Result<TrainState> {
    let mut now = state(0);
    change(&mut now);
    load(
        path,
        &Expected { plan: &now.plan, config: &now.config, inputs: &now.inputs },
        &Device::Cpu,
    )
}

fn resume(run: &RunLock, progress: &dyn Progress) -> Result<Option<TrainState>> {
    let now = state(0);
    load_latest_good(
        run,
        &Expected { plan: &now.plan, config: &now.config, inputs: &now.inputs },
        &Device::Cpu,
        progress,
    )
}

fn bits(set: &ParamSet) -> Vec<u32> {
    set.tensors()
        .iter()
        .flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        .map(f32::to_bits)
        .collect()
}

fn flip_a_bit(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn everything_comes_back_bit_for_bit() {
    let (_folder, run) = run_with(&[12]);
    let path = latest(run.dir()).unwrap().unwrap();
    assert!(path.ends_with("checkpoints/step-00000012"));
    let (found, saved) = (load_with(&path, |_| ()).unwrap(), state(12));
    assert_eq!(found.counters, saved.counters);
    assert_eq!(found.selector, saved.selector);
    assert_eq!((found.plan, found.config, found.inputs), (saved.plan, saved.config, saved.inputs));
    assert_eq!(found.optimizer.step, 9);
    let sets = [
        (&found.params, &saved.params),
        (&found.optimizer.m, &saved.optimizer.m),
        (&found.optimizer.v, &saved.optimizer.v),
    ];
    for (found, saved) in sets {
        assert_eq!(bits(found), bits(saved));
    }
    // The same state again makes the same bytes.
    let again = save(&run, &state(12), &SaveOptions::default(), &keeping(0, 0)).unwrap();
    assert_eq!(verify(&again).unwrap(), verify(&path).unwrap());
}

#[test]
fn any_damage_is_named() {
    let names = ["model.safetensors", "config.json", FIRST_MOMENT, SECOND_MOMENT, STATE_FILE];
    for name in names {
        let (_folder, run) = run_with(&[1]);
        let path = latest(run.dir()).unwrap().unwrap();
        let whole = fs::read(path.join(name)).unwrap();
        let message = |what: &str| {
            let error = load_with(&path, |_| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Data, "{what}");
            assert!(error.to_string().contains(name), "{what}: {error}");
            error.to_string()
        };
        flip_a_bit(&path.join(name));
        assert!(message("a flipped bit").contains("SHA-256"));
        fs::write(path.join(name), &whole[..whole.len() - 1]).unwrap();
        assert!(message("cut short").contains("bytes"));
        fs::remove_file(path.join(name)).unwrap();
        assert!(message("removed").contains("missing"));
        fs::write(path.join(name), &whole).unwrap();
        load_with(&path, |_| ()).unwrap();
    }
}

#[test]
fn a_checkpoint_of_layout_version_1_is_read() {
    let (_folder, run) = run_with(&[1]);
    let path = latest(run.dir()).unwrap().unwrap();
    let want = load_with(&path, |_| ()).unwrap();
    let file = path.join(MANIFEST_FILE);
    let mut manifest: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    manifest["version"] = json!(1);
    for (new, old) in [(FIRST_MOMENT, FIRST_MOMENT_1), (SECOND_MOMENT, SECOND_MOMENT_1)] {
        fs::rename(path.join(new), path.join(old)).unwrap();
        let sum = manifest["files"].as_object_mut().unwrap().remove(new).unwrap();
        manifest["files"][old] = sum;
    }
    fs::write(&file, manifest.to_string()).unwrap();
    let found = load_with(&path, |_| ()).unwrap();
    let bits = |set: &ParamSet| -> Vec<Vec<f32>> {
        set.tensors().iter().map(|t| t.flatten_all().unwrap().to_vec1().unwrap()).collect()
    };
    assert_eq!(bits(&found.optimizer.m), bits(&want.optimizer.m));
    assert_eq!(bits(&found.optimizer.v), bits(&want.optimizer.v));
    // A tool that loads every safetensors file of a new folder finds the model alone.
    let (_folder, run) = run_with(&[1]);
    let files = fs::read_dir(latest(run.dir()).unwrap().unwrap()).unwrap();
    let names = files.map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(
        names.filter(|n| n.ends_with(".safetensors")).collect::<Vec<_>>(),
        ["model.safetensors"]
    );
}

#[test]
fn a_manifest_cannot_lie() {
    let (_folder, run) = run_with(&[1]);
    let path = latest(run.dir()).unwrap().unwrap();
    let file = path.join(MANIFEST_FILE);
    let good: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut changed = good.clone();
        change(&mut changed);
        fs::write(&file, changed.to_string()).unwrap();
        load_with(&path, |_| ()).unwrap_err()
    };
    let error = refused(&|m| m["version"] = json!(3));
    assert!(error.kind() == ErrorKind::Usage && error.to_string().contains("version 3"), "{error}");
    assert!(refused(&|m| m["format"] = json!("other")).to_string().contains("format"));
    assert!(refused(&|m| m["files"] = json!({})).to_string().contains("does not list"));
    let outside = refused(&|m| m["files"]["../state.json"] = m["files"]["state.json"].clone());
    assert!(outside.to_string().contains("no plain file name"), "{outside}");
    fs::write(&file, "{").unwrap();
    assert!(load_with(&path, |_| ()).unwrap_err().to_string().contains("manifest.json is damaged"));
    fs::remove_file(&file).unwrap();
    assert!(load_with(&path, |_| ()).unwrap_err().to_string().contains("manifest.json is missing"));
}

/// Another `state.json`, and a manifest whose hashes are made to fit: for what hashes cannot see.
fn rewrite_state(path: &Path, state: &Value) {
    fs::write(path.join(STATE_FILE), state.to_string()).unwrap();
    let files = Manifest::read(path).unwrap();
    fs::remove_file(path.join(MANIFEST_FILE)).unwrap();
    Manifest::write(path, files.step, &files.inputs).unwrap();
}

#[test]
fn a_checkpoint_that_names_keys_as_earlier_versions_did_resumes_as_the_same_run() {
    let (_folder, run) = run_with(&[1]);
    let path = latest(run.dir()).unwrap().unwrap();
    let now = load_with(&path, |_| ()).unwrap();
    let mut state: Value =
        serde_json::from_slice(&fs::read(path.join(STATE_FILE)).unwrap()).unwrap();
    let select = state["plan"]["select"].as_object_mut().unwrap();
    for (name, was) in [("cvar_weight", "mix"), ("rest_rate", "rest"), ("threshold_ema", "carry")] {
        let value = select.remove(name).unwrap();
        select.insert(was.into(), value);
    }
    rewrite_state(&path, &state);
    let found = load_with(&path, |_| ()).unwrap();
    assert_eq!(found.plan, now.plan);
    let text = load_with(&path, |s| s.plan.select.rest_rate = 0.5).unwrap_err().to_string();
    assert!(text.contains("select.rest_rate: 0.25 before, 0.5 now"), "{text}");
}

#[test]
fn counts_that_no_run_could_have_are_refused() {
    let (_folder, run) = run_with(&[8]);
    let path = latest(run.dir()).unwrap().unwrap();
    let good: Value = serde_json::from_slice(&fs::read(path.join(STATE_FILE)).unwrap()).unwrap();
    let with = |key: &str, value: Value| {
        let mut state = good.clone();
        assert!(!state[key].is_null(), "no {key}");
        state[key] = value;
        rewrite_state(&path, &state);
        load_with(&path, |_| ())
    };
    for (key, value, says) in [
        ("step", json!(7), "step is 7; expected 8, as in manifest.json"),
        (
            "cursor",
            json!(u64::MAX),
            "cursor is 18446744073709551615; expected 32, the sequences of 8 steps",
        ),
        ("cursor", json!(31), "cursor is 31; expected 32"),
        ("tokens", json!(257), "tokens is 257; expected at most 256"),
        ("skipped", json!(9), "skipped is 9; expected at most 8"),
        ("optimizer_step", json!(7), "optimizer_step is 7; expected at most 6"),
        ("last_validation", json!([9, 1.0]), "last_validation is 9; expected at most 8"),
        ("seconds", json!(-1.0), "seconds is -1; expected at least 0"),
    ] {
        let error = with(key, value).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data, "{error}");
        let text = error.to_string();
        assert!(
            text.contains(says)
                && text.contains(STATE_FILE)
                && text.contains("go on from the one before"),
            "{text}"
        );
    }
    with("tokens", json!(255)).unwrap();

    // Beyond the plan, where manifest and state agree: such a run would never end.
    let (_folder, run) = run_with(&[101]);
    let error = load_with(&latest(run.dir()).unwrap().unwrap(), |_| ()).unwrap_err().to_string();
    assert!(error.contains("step is 101; expected at most 100, the steps of the run"), "{error}");
}

#[test]
fn another_run_is_refused_with_the_difference() {
    let (_folder, run) = run_with(&[1]);
    let path = latest(run.dir()).unwrap().unwrap();
    let refused = |change: fn(&mut TrainState)| {
        let error = load_with(&path, change).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        error.to_string()
    };
    let text = refused(|s| {
        s.plan.optim.lr = 1e-3;
        s.plan.seed = 8;
    });
    assert!(
        text.contains("optim.lr: 0.0006 before, 0.001 now")
            && text.contains("seed: 7 before, 8 now"),
        "{text}"
    );
    assert!(refused(|s| s.inputs.data_hash = "d2".into()).contains("d1 before, d2 now"));
    assert!(
        refused(|s| s.inputs.tokenizer_hash = "t2".into())
            .contains("tokenizer (SHA-256): t1 before, t2 now")
    );
    let text = refused(|s| s.inputs.models.teacher_hash = Some("w2".into()));
    assert!(text.contains("teacher's weights (SHA-256): w1 before, w2 now"), "{text}");
    let text = refused(|s| s.inputs.models.teacher_function = Some("f2".into()));
    assert!(text.contains("teacher's config.json: f1 before, f2 now"), "{text}");
    for (now, shown) in [(Some("v2".to_string()), "v2"), (None, "none")] {
        let error = load_with(&path, |s| s.inputs.valid_hash = now).unwrap_err().to_string();
        let says = format!("validation tokens (SHA-256): v1 before, {shown} now");
        assert!(error.contains(&says), "{error}");
    }
    let text = refused(|s| {
        s.plan.student = "./stored".into();
        s.inputs.models.student_hash = Some("w3".into());
    });
    assert!(text.contains("student: "), "it began as a preset: {text}");
    assert!(refused(|s| s.config = Gpt2Config::new(11, 8, 8, 1, 2)).contains("another shape"));
    let text = refused(|s| s.config.layer_norm_epsilon = 1e-6);
    assert!(text.contains("layer_norm_epsilon = 0.000001"), "{text}");
    // The machine half is free.
    load_with(&path, |s| {
        s.plan.machine.threads = 3;
        s.plan.checkpoint.every = 1;
    })
    .unwrap();
}

#[test]
fn a_checkpoint_from_before_teachers_were_noted_still_loads() {
    let (_folder, run) = run_with(&[1]);
    let path = latest(run.dir()).unwrap().unwrap();
    let file = path.join(MANIFEST_FILE);
    let mut manifest: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let fields = manifest.as_object_mut().unwrap();
    assert_eq!(fields.remove("teacher_hash"), Some(json!("w1")));
    assert_eq!(fields.remove("teacher_revision"), Some(json!("org/teacher@c1")));
    assert_eq!(fields.remove("teacher_function"), Some(json!("f1")));
    assert_eq!(fields.remove("valid_hash"), Some(json!("v1")));
    assert!(
        !fields.contains_key("student_revision"),
        "nothing is said of a student that is not of the Hub"
    );
    fs::write(&file, manifest.to_string()).unwrap();
    let found = load_with(&path, |s| {
        s.inputs.models.teacher_hash = Some("w2".into());
        s.inputs.models.teacher_function = Some("f2".into());
        s.inputs.valid_hash = Some("v2".into());
    });
    let found = found.unwrap();
    assert_eq!(
        (found.inputs.models.teacher_hash, found.inputs.models.teacher_revision),
        (None, None)
    );
}

#[test]
fn the_same_weights_at_another_revision_are_the_same_run() {
    let (_folder, run) = run_with(&[1]);
    let path = latest(run.dir()).unwrap().unwrap();
    let found = load_with(&path, |s| {
        s.inputs.models.teacher_revision = Some("org/teacher@c2".into());
        s.inputs.models.student_revision = Some("org/student@c3".into());
    });
    assert_eq!(found.unwrap().inputs.models.teacher_revision.as_deref(), Some("org/teacher@c1"));
}

#[test]
fn the_only_copy_of_a_checkpoint_survives_a_crash_before_its_rename() {
    let (folder, run) = run_with(&[1, 2, 3]);
    drop(run);
    let run = folder.path().join("run");
    let inside = run.join("checkpoints");
    let moved = |from: &str, to: &str| fs::rename(inside.join(from), inside.join(to)).unwrap();
    let names = || {
        drop(RunLock::acquire(&run).unwrap());
        let mut names: Vec<_> = fs::read_dir(&inside)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    // Replaced and not yet replaced; pruned; damaged.
    moved("step-00000003", ".step-00000003.17-4.tmp");
    moved("step-00000001", ".step-00000001.old-0.tmp");
    assert_eq!(names(), ["step-00000002", "step-00000003"]);
    verify(&inside.join("step-00000003")).unwrap();
    moved("step-00000002", ".step-00000002.17-4.tmp");
    flip_a_bit(&inside.join(".step-00000002.17-4.tmp").join(STATE_FILE));
    assert_eq!(names(), ["step-00000003"]);
    fs::create_dir(inside.join(".step-00000003.18-0.tmp")).unwrap();
    assert_eq!(names(), ["step-00000003"]);
}

#[test]
fn only_the_newest_stay() {
    let (_folder, run) = run_with(&[1, 2, 3]);
    save(&run, &state(4), &SaveOptions::default(), &keeping(2, 0)).unwrap();
    assert_eq!(steps_of(&run), [3, 4]);
    // A run that went back keeps what it saves, and what came later is not its own to remove.
    save(&run, &state(2), &SaveOptions::default(), &keeping(1, 0)).unwrap();
    assert_eq!(steps_of(&run), [2, 3, 4]);
    let names = fs::read_dir(run.dir().join("checkpoints")).unwrap().count();
    assert_eq!(names, 3, "nothing temporary is left");
}

#[test]
fn the_best_validated_ones_stay_as_well() {
    let (_folder, run) = run_with(&[]);
    let place = |step: u64| run.dir().join(format!("checkpoints/step-{step:08}"));
    assert_eq!(best(run.dir()).unwrap(), None);
    let with = |step: u64, validated: Option<(u64, f64)>| {
        let mut state = state(step);
        state.counters.last_validation = validated;
        save(&run, &state, &SaveOptions::default(), &keeping(1, 2)).unwrap();
        steps_of(&run)
    };
    with(1, Some((1, 3.0)));
    assert_eq!(with(2, Some((2, 2.0))), [1, 2]);
    assert_eq!(with(3, Some((3, 2.5))), [2, 3], "the third best goes once it is not the newest");
    // A loss of other weights than the checkpoint's own says nothing about it.
    assert_eq!(with(4, Some((3, 0.1))), [2, 3, 4]);
    assert_eq!(with(5, None), [2, 3, 5]);
    assert_eq!(with(6, Some((6, 2.0))), [2, 6]);
    assert_eq!(best(run.dir()).unwrap(), Some(place(6)), "of equal ones the later");
    fs::write(place(6).join(STATE_FILE), "{").unwrap();
    assert_eq!(
        best(run.dir()).unwrap(),
        Some(place(2)),
        "a state that cannot be read claims nothing"
    );
}

#[test]
fn a_failed_save_leaves_the_old_ones_and_nothing_else() {
    let (folder, run) = run_with(&[1]);
    let nowhere = folder.path().join("no-tokenizer");
    fs::create_dir(&nowhere).unwrap();
    let options = SaveOptions { tokenizer: Some(&nowhere), ..SaveOptions::default() };
    save(&run, &state(2), &options, &keeping(1, 0)).unwrap_err();
    assert_eq!(fs::read_dir(run.dir().join("checkpoints")).unwrap().count(), 1);
    assert_eq!(resume(&run, &Silent).unwrap().unwrap().counters.step, 1);
}

#[test]
fn the_newest_good_one_is_found_with_a_warning_about_the_damage() {
    let (_folder, run) = run_with(&[1, 2, 3]);
    let folder = run.dir().join("checkpoints");
    flip_a_bit(&folder.join("step-00000003").join(SECOND_MOMENT));
    fs::remove_file(folder.join("step-00000002").join(MANIFEST_FILE)).unwrap();
    let notes = Notes::default();
    assert_eq!(resume(&run, &notes).unwrap().unwrap().counters.step, 1);
    let said = notes.lines().join("\n");
    for part in [
        SECOND_MOMENT,
        "damaged-step-00000003",
        "manifest.json is missing",
        "damaged-step-00000002",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(steps_of(&run), [1], "set aside, so that the next resume does not meet them again");

    flip_a_bit(&folder.join("step-00000001").join(STATE_FILE));
    let error = resume(&run, &Silent).unwrap_err();
    assert!(
        error.to_string().contains("no good checkpoint left")
            && error.to_string().contains(STATE_FILE),
        "{error}"
    );
    assert_eq!(steps_of(&run), [1], "and the next resume fails as well instead of starting over");
}

#[test]
fn a_run_without_checkpoints_has_nothing_to_resume() {
    let (_folder, run) = run_with(&[]);
    assert!(resume(&run, &Silent).unwrap().is_none());
}

/// A pending signal stops every poll of the process, so the test does its work in a process of its
/// own.
#[test]
fn a_stop_signal_does_not_stop_the_save_it_asks_for() {
    const NAME: &str = "train::checkpoint::tests::a_stop_signal_does_not_stop_the_save_it_asks_for";
    const CHILD: &str = "ESLM_KD_TEST_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        return;
    }
    crate::interrupt::install().unwrap();
    signal_hook::low_level::raise(signal_hook::consts::SIGTERM).unwrap();
    assert_eq!(crate::interrupt::check().unwrap_err().kind(), ErrorKind::Interrupted(15));
    let (_folder, run) = run_with(&[5]);
    assert_eq!(steps_of(&run), [5]);
    let error = load_with(&latest(run.dir()).unwrap().unwrap(), |_| ()).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Interrupted(15),
        "the signal is noticed again after the save"
    );
}

#[test]
fn the_command_for_a_longer_run_names_who_teaches() {
    let of = |teaches: &str| {
        let plan = crate::testing::plan(&["data.dir=d", "shape.n_layer=1", teaches]);
        from_its_weights(Path::new("runs/a"), &plan, 2, 5)
    };
    assert!(of("teacher=t").contains(" distill --data d --teacher t "), "{}", of("teacher=t"));
    assert!(
        of("data.signal=s").contains(" distill --data d --signal s "),
        "{}",
        of("data.signal=s")
    );
}
