//! Layers, origins, messages, rules and the shipped run files.

use super::keys::{Fallback, KEYS};
use super::*;
use toml::Value;

fn file(text: &str) -> RunFile {
    RunFile { name: "run.toml".into(), text: text.into() }
}

fn from_text(text: &str) -> crate::Result<Resolved> {
    load(Some(&file(text)), &Overrides::default())
}

fn message(text: &str) -> String {
    from_text(text).expect_err("the run file should be refused").to_string()
}

fn plan(text: &str) -> Plan {
    from_text(text).unwrap_or_else(|e| panic!("{e}")).plan
}

#[test]
fn defaults_alone_are_a_valid_plan() {
    let resolved = load(None, &Overrides::default()).unwrap();
    assert_eq!((resolved.plan.method, resolved.plan.select.alpha), (Method::Clm, 0.0));
    assert_eq!(resolved.plan.schedule.warmup, 30, "3 % of 1000 steps");
    assert_eq!(resolved.plan.eval.stride, resolved.plan.data.context);
    assert_eq!(resolved.plan.objective.lambda, 0.0, "no teacher, no distillation");
    assert!(resolved.values.iter().all(|v| matches!(v.origin, Origin::Default | Origin::Rule(_))));
}

#[test]
fn selection_is_asked_for_by_a_teacher_or_by_a_key_of_its_own() {
    for (text, method, alpha) in [
        ("", Method::Clm, 0.0),
        ("teacher = 't'", Method::Eslm, 0.1),
        ("[select]\nscore = 'loss'", Method::Eslm, 0.1),
        ("[select]\nburn_in = 7", Method::Eslm, 0.1),
        ("teacher = 't'\nmethod = 'clm'", Method::Clm, 0.0),
        ("method = 'eslm'", Method::Eslm, 0.1),
        ("[data]\nsignal = 's'", Method::Eslm, 0.1),
    ] {
        let plan = plan(text);
        assert_eq!((plan.method, plan.select.alpha), (method, alpha), "{text}");
    }
}

#[test]
fn the_table_of_keys_and_the_plan_name_the_same_things() {
    // Every optional key written, so that nothing is skipped.
    let full = plan(
        "teacher = 't'\ninit = 'teacher-layers'\nlayers = [0]\n[data]\ndir = 'd'\n\
         [shape]\nn_layer = 1\nn_head = 1\nn_embd = 4\nn_positions = 4\n\
         [objective]\nlambda_end = 0.1\ntemperature_end = 2.0\n",
    );
    // Which no run can have beside a teacher's layers.
    let full = Plan { data: DataPlan { signal: Some("s".into()), ..full.data }, ..full };
    let mut leaves = Vec::new();
    super::plan::flatten("", &serde_json::to_value(&full).unwrap(), &mut leaves);
    let of_plan: Vec<&str> = leaves.iter().map(|(k, _)| k.as_str()).collect();
    let of_table: Vec<&str> = KEYS.iter().map(|k| k.name).collect();
    assert_eq!(of_plan, of_table);
}

#[test]
fn every_default_is_a_value_its_key_accepts() {
    for key in KEYS {
        if let Fallback::Is(text) = key.default {
            assert!(key.kind.accept(&key.kind.read(text)).is_some(), "{}: {text}", key.name);
        }
        assert!(!key.help.is_empty() && !key.help.ends_with('.'), "{}", key.name);
    }
}

#[test]
fn later_layers_win_and_every_value_knows_its_origin() {
    let run = file("steps = 10\nseed = 1\n[optim]\nlr = 1e-3\n[select]\n\nalpha = 0.2\n");
    let mut over = Overrides::default();
    // Given in the opposite order of their rank.
    over.set("steps=40").unwrap();
    over.put("steps", "30", Origin::Flag("steps")).unwrap();
    over.put("steps", "20", Origin::Env("ESLM_KD_STEPS")).unwrap();
    over.put("optim.lr", "2e-3", Origin::Flag("lr")).unwrap();
    over.put("optim.lr", "3e-3", Origin::Env("ESLM_KD_LR")).unwrap();
    over.put("seed", "7", Origin::Env("ESLM_KD_SEED")).unwrap();
    let resolved = load(Some(&run), &over).unwrap();
    assert_eq!(
        (
            resolved.plan.steps,
            resolved.plan.optim.lr,
            resolved.plan.seed,
            resolved.plan.select.alpha
        ),
        (40, 2e-3, 7, 0.2)
    );
    let origin = |name: &str| resolved.value(name).unwrap().origin.to_string();
    assert_eq!(origin("steps"), "--set");
    assert_eq!(origin("optim.lr"), "--lr");
    assert_eq!(origin("seed"), "environment ESLM_KD_SEED");
    assert_eq!(origin("select.alpha"), "run.toml:7");
    assert_eq!(origin("optim.beta1"), "default");
    assert_eq!(origin("schedule.warmup"), "default (3 % of steps)");
}

#[test]
fn the_last_set_of_a_key_wins() {
    let mut over = Overrides::default();
    over.set("select.alpha=0.2").unwrap();
    over.set(" select.alpha = 0.3 ").unwrap();
    assert_eq!(load(None, &over).unwrap().plan.select.alpha, 0.3);
}

#[test]
fn texts_from_the_command_line_are_read_as_their_key_wants() {
    let mut over = Overrides::default();
    for assignment in [
        "teacher=124",
        "student=\"my model\"",
        "layers=0,2, 4",
        "objective.lambda=1",
        "machine.micro_rows=8",
        "machine.device=cuda:3",
        "init=teacher-layers",
        "data.dir=a=b",
    ] {
        over.set(assignment).unwrap();
    }
    let plan = load(None, &over).unwrap().plan;
    assert_eq!(plan.teacher.as_deref(), Some("124"), "a folder may be called 124");
    assert_eq!(plan.student, "my model");
    assert_eq!(plan.layers, Some(vec![0, 2, 4]));
    assert_eq!(plan.objective.lambda, 1.0);
    assert_eq!(plan.machine.micro_rows, MicroRows::Rows(8));
    assert_eq!(plan.machine.device, DeviceSpec::Cuda(3));
    assert_eq!(plan.data.dir.as_deref(), Some("a=b"));
}

#[test]
fn unknown_keys_are_refused_with_place_and_suggestion() {
    for (text, place, suggestion) in [
        (
            "seed = 1\n[select]\nalhpa = 0.1\n",
            "run.toml:3: unknown key \"select.alhpa\"",
            "\"select.alpha\"",
        ),
        ("[select]\nscores = 'loss'\n", "run.toml:2:", "\"select.score\""),
        ("alpha = 0.1\n", "run.toml:1: unknown key \"alpha\"", "\"select.alpha\""),
        (
            "[optim]\nwarmup = 3\n",
            "run.toml:2: unknown key \"optim.warmup\"",
            "\"schedule.warmup\"",
        ),
        ("\n[selct]\nalpha = 0.1\n", "run.toml:2: unknown section [selct]", "[select]"),
        ("stpes = 3\n", "run.toml:1:", "\"steps\""),
        ("select.alhpa = 0.1\n", "run.toml:1:", "\"select.alpha\""),
    ] {
        let message = message(text);
        assert!(
            message.contains(place) && message.contains(suggestion),
            "{text:?} gave: {message}"
        );
    }
    let far = message("[data]\nzzzzzzzz = 1\n");
    assert!(
        far.contains("[data] has dir, signal, context, rows") && !far.contains("did you mean"),
        "{far}"
    );
    let set = Overrides::default().set("select.alfa=1").unwrap_err().to_string();
    assert!(set.starts_with("--set: unknown key") && set.contains("select.alpha"), "{set}");
    assert!(
        Overrides::default()
            .set("select.alpha")
            .unwrap_err()
            .to_string()
            .contains("section.key=value")
    );
}

#[test]
fn wrong_types_and_ranges_say_expected_found_and_where() {
    for (text, parts) in [
        ("[select]\nalpha = 1.0\n", ["run.toml:2: select.alpha", "[0, 1)", "found 1.0"]),
        ("[select]\nalpha = -0.1\n", ["run.toml:2", "[0, 1)", "found -0.1"]),
        ("[select]\nalpha = nan\n", ["run.toml:2", "[0, 1)", "nan"]),
        ("[select]\nalpha = 'high'\n", ["select.alpha", "[0, 1)", "the text \"high\""]),
        ("steps = 0\n", ["run.toml:1: steps", "between 1 and", "found 0"]),
        ("steps = 1.5\n", ["steps", "a whole number", "found 1.5"]),
        ("seed = -1\n", ["seed", "between 0 and", "found -1"]),
        ("[optim]\nlr = 0\n", ["optim.lr", "above 0", "found 0"]),
        ("[optim]\nlr = inf\n", ["optim.lr", "a finite number", "inf"]),
        (
            "[objective]\ntemperature = 0.0\n",
            ["objective.temperature", "at least 0.001", "found 0.0"],
        ),
        ("[objective]\nbeta = 1.0\n", ["objective.beta", "(0, 1)", "found 1.0"]),
        ("[objective]\nlambda = 1.1\n", ["objective.lambda", "[0, 1]", "found 1.1"]),
        (
            "[select]\nscore = 'entrophy'\n",
            ["select.score", "\"teacher-entropy\"", "did you mean \"entropy\"?"],
        ),
        ("[machine]\ndevice = 'gpu'\n", ["machine.device", "cuda:INDEX", "the text \"gpu\""]),
        ("[machine]\nmicro_rows = 0\n", ["machine.micro_rows", "\"auto\"", "found 0"]),
        ("[machine]\ndtype = 'f16'\n", ["machine.dtype", "\"f32\" or \"bf16\"", "\"f16\""]),
        ("layers = [0, -1]\n", ["layers", "whole numbers", "[0, -1]"]),
        ("student = ''\n", ["student", "not empty", "the text \"\""]),
        ("data = 'dir'\n", ["run.toml:1", "data is a section", "[data]"]),
        ("[steps]\nn = 1\n", ["run.toml:1: steps", "whole number", "a section"]),
        ("[select\n", ["run.toml:1", "not valid TOML", ""]),
        ("seed = 1\nseed = 2\n", ["run.toml:2", "not valid TOML", "duplicate"]),
    ] {
        let message = message(text);
        for part in parts {
            assert!(message.contains(part), "{text:?}: no {part:?} in: {message}");
        }
    }
    let mut over = Overrides::default();
    over.put("select.alpha", "2", Origin::Env("ESLM_KD_ALPHA")).unwrap();
    let message = load(None, &over).unwrap_err().to_string();
    assert!(message.starts_with("environment ESLM_KD_ALPHA: select.alpha: expected"), "{message}");
}

#[test]
fn values_that_do_not_fit_together_are_refused() {
    for (text, parts) in [
        ("[select]\nscore = 'kl'\n", ["run.toml:2", "select.score = \"kl\"", "--teacher"]),
        ("[select]\nscore = 'excess'\n", ["select.score", "there is none", "random"]),
        ("[objective]\nlambda = 0.5\n", ["run.toml:2", "objective.lambda = 0.5", "--teacher"]),
        (
            "[objective]\nlambda_end = 0.5\n",
            ["run.toml:2", "objective.lambda_end = 0.5", "--teacher"],
        ),
        (
            "[objective]\ndivergence = 'jsd'\nsignal = 'sampled'\n",
            ["run.toml:3", "forward-kl", "\"jsd\""],
        ),
        ("init = 'teacher-layers'\n", ["run.toml:1", "teacher-layers", "--teacher"]),
        ("init = 'scratch'\nlayers = [1]\n", ["run.toml:2", "layers", "\"scratch\""]),
        (
            "[data]\nrows = 12\n[machine]\nmicro_rows = 5\n",
            ["run.toml:4", "divide data.rows = 12", "try 4"],
        ),
        ("[shape]\nn_embd = 10\nn_head = 3\n", ["run.toml:2", "n_embd = 10", "n_head = 3"]),
        (
            "[data]\ncontext = 8\n[eval]\nstride = 9\n",
            ["run.toml:4", "eval.stride = 9", "data.context = 8"],
        ),
    ] {
        let message = message(text);
        for part in parts {
            assert!(message.contains(part), "{text:?}: no {part:?} in: {message}");
        }
    }
}

#[test]
fn clm_switches_selection_off_and_a_flag_against_it_is_an_error() {
    let text = "method = 'clm'\n[select]\nscore = 'kl'\nalpha = 0.3\nburn_in = 5\n";
    let resolved = from_text(text).unwrap();
    assert_eq!((resolved.plan.select.alpha, resolved.plan.select.burn_in), (0.0, 0));
    assert_eq!(resolved.plan.alpha_at(100), 0.0);
    assert!(resolved.value("select.alpha").unwrap().origin.to_string().contains("clm"));
    let mut over = Overrides::default();
    over.put("select.alpha", "0.2", Origin::Flag("alpha")).unwrap();
    let message = load(Some(&file(text)), &over).unwrap_err().to_string();
    assert!(message.contains("--alpha") && message.contains("clm"), "{message}");
}

#[test]
fn a_teacher_brings_distillation() {
    assert_eq!(plan("teacher = 'gpt2'\n").objective.lambda, 0.5);
    assert_eq!(plan("teacher = 'gpt2'\n[objective]\nlambda = 0\n").objective.lambda, 0.0);
}

#[test]
fn alpha_waits_then_ramps() {
    let select = |burn_in, ramp| SelectPlan { burn_in, ramp, alpha: 0.4, ..plan("").select };
    let s = select(10, 4);
    let expected =
        [(0, 0.0), (9, 0.0), (10, 0.0), (11, 0.1), (12, 0.2), (13, 0.3), (14, 0.4), (1000, 0.4)];
    for (step, alpha) in expected {
        assert!((s.alpha_at(step) - alpha).abs() < 1e-15, "step {step}: {}", s.alpha_at(step));
    }
    assert_eq!(select(0, 0).alpha_at(0), 0.4);
    assert_eq!((select(3, 0).alpha_at(2), select(3, 0).alpha_at(3)), (0.0, 0.4));
}

#[test]
fn every_shipped_run_file_loads_and_round_trips_through_its_resolved_form() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        names.push(path.file_stem().unwrap().to_str().unwrap().to_string());
        let run = RunFile::find(path.to_str().unwrap()).unwrap();
        let first = load(Some(&run), &Overrides::default()).unwrap_or_else(|e| panic!("{e}"));
        assert!(first.notes().is_empty(), "{}: {:?}", run.name, first.notes());
        let text = first.plan.to_toml().unwrap();
        let second = load(Some(&file(&text)), &Overrides::default())
            .unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(first.plan, second.plan, "{}", run.name);
        let stored: Plan =
            serde_json::from_str(&serde_json::to_string(&first.plan).unwrap()).unwrap();
        assert_eq!(first.plan, stored, "{} as JSON", run.name);
    }
    names.sort();
    let mut embedded: Vec<&str> = EMBEDDED.iter().map(|(n, _)| *n).collect();
    embedded.sort_unstable();
    assert_eq!(names, embedded, "every file of configs/ is built in, by its name");
}

#[test]
fn a_plan_with_every_key_round_trips() {
    let text = "method = 'eslm'\nteacher = 't'\ninit = 'teacher-layers'\nlayers = [0, 2]\n[shape]\nn_layer = 2\n\
                [data]\ndir = 'd'\nrows = 6\n[machine]\nmicro_rows = 3\ndevice = 'cuda'\n[optim]\nlr = 0.1\n";
    let first = plan(text);
    assert_eq!(plan(&first.to_toml().unwrap()), first);
}

#[test]
fn the_mathematics_half_ignores_the_machine_and_notices_everything_else() {
    let base = plan("");
    let same = plan(
        "[data]\ndir = 'elsewhere'\n[machine]\nmicro_rows = 4\nhead = 'recompute'\nbackward = 'dense'\ndevice = 'cpu'\n\
         threads = 3\n[eval]\nevery = 7\n[log]\nevery = 3\n[checkpoint]\nkeep = 9\n",
    );
    assert_eq!(base.mathematics(), same.mathematics());
    assert!(same.mathematics_differences(&base.mathematics()).is_empty());
    for text in [
        "seed = 3\n",
        "steps = 3\n",
        "student = 'x'\n",
        "[select]\nalpha = 0.5\n",
        "[optim]\nclip = 0.0\n",
        "[schedule]\nfloor = 0.0\n",
        "[shape]\nn_layer = 3\n",
    ] {
        let differences = plan(text).mathematics_differences(&base.mathematics());
        let last = text.trim_end().rsplit('\n').next().unwrap().split(' ').next().unwrap();
        // A rule may move a second key (the warm-up follows the steps).
        assert!(differences.iter().any(|d| d.contains(last)), "{text:?}: {differences:?}");
    }
    // Two backward modes have other numbers, and one of them a number of its own.
    for (text, expected) in [
        ("backward = 'sparse'", vec!["machine.backward: absent before, \"sparse\" now"]),
        (
            "backward = 'sampled'\nrho = 0.25",
            vec![
                "machine.backward: absent before, \"sampled\" now",
                "machine.rho: absent before, 0.25 now",
            ],
        ),
        (
            "backward = 'sampled'\nadded_variance = 0.5",
            vec![
                "machine.backward: absent before, \"sampled\" now",
                "machine.added_variance: absent before, 0.5 now",
            ],
        ),
        ("rho = 0.25", vec![]),
    ] {
        let differences =
            plan(&format!("[machine]\n{text}\n")).mathematics_differences(&base.mathematics());
        assert_eq!(differences, expected, "{text}");
    }
    // A threshold shared by a micro-batch makes its size mathematics.
    let pool = |micro: u32| {
        plan(&format!("[select]\npool = 'micro-batch'\n[machine]\nmicro_rows = {micro}\n"))
    };
    assert_eq!(
        pool(4).mathematics_differences(&pool(8).mathematics()),
        vec!["machine.micro_rows: 8 before, 4 now".to_string()]
    );
}

#[test]
fn old_names_are_read_with_a_note_and_refused_beside_the_new_ones() {
    let old = "teacher = 't'\nbirth = 'teacher-layers'\nlayers = [0]\n[select]\nmix = 0.5\nrest = 0.4\ncarry = 0.3\n";
    let resolved = from_text(old).unwrap();
    let select = &resolved.plan.select;
    assert_eq!(resolved.plan.init, Some(Init::TeacherLayers));
    assert_eq!((select.cvar_weight, select.rest_rate, select.threshold_ema), (0.5, 0.4, 0.3));
    let notes = resolved.notes();
    for part in [
        "run.toml:2: birth is now called init",
        "run.toml:5: select.mix is now called select.cvar_weight",
        "run.toml:6: select.rest is now called select.rest_rate",
        "run.toml:7: select.carry is now called select.threshold_ema",
    ] {
        assert!(notes.iter().any(|note| note.contains(part)), "{part}: {notes:?}");
    }
    assert_eq!(notes.len(), 4);
    let both = message("[select]\nmix = 0.5\n\ncvar_weight = 0.5\n");
    for part in
        ["run.toml:2", "run.toml:4", "select.cvar_weight was called select.mix before", "keep one"]
    {
        assert!(both.contains(part), "{both}");
    }
    // What is written later has the later word, whatever it calls the key.
    let mut over = Overrides::default();
    over.put("birth", "scratch", Origin::Env("ESLM_KD_BIRTH")).unwrap();
    over.put("layers", "0", Origin::Set).unwrap();
    over.put("init", "teacher-layers", Origin::Set).unwrap();
    over.set("select.cvar_weight=0.25").unwrap();
    let resolved = load(Some(&file(old)), &over).unwrap();
    assert_eq!(
        (resolved.plan.init, resolved.plan.select.cvar_weight),
        (Some(Init::TeacherLayers), 0.25)
    );
    let both = over.set("select.mix=0.25").unwrap_err().to_string();
    assert!(both.contains("--set: select.cvar_weight was called select.mix"), "{both}");
}

#[test]
fn a_stored_plan_with_old_names_is_the_same_run() {
    let text = "teacher = 't'\ninit = 'teacher-layers'\nlayers = [0]\n[select]\ncvar_weight = 0.5\nrest_rate = 0.4\n\
                threshold_ema = 0.3\n";
    let now = plan(text);
    let mut stored = serde_json::to_string(&now).unwrap();
    for key in KEYS {
        let bare = |name: &'static str| name.rsplit('.').next().unwrap();
        if let Some(was) = key.was {
            let renamed =
                stored.replace(&format!("\"{}\":", bare(key.name)), &format!("\"{}\":", bare(was)));
            assert_ne!(renamed, stored, "{was} was not in the stored plan");
            stored = renamed;
        }
    }
    // Written before these keys were there.
    let mut json: serde_json::Value = serde_json::from_str(&stored).unwrap();
    for (section, key) in
        [("optim", "on_nonfinite"), ("machine", "activations"), ("checkpoint", "keep_best")]
    {
        json[section].as_object_mut().unwrap().shift_remove(key).unwrap();
    }
    let before: Plan = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(before, now);
    assert!(now.mathematics_differences(&before.mathematics()).is_empty());
    assert_eq!(before.mathematics(), now.mathematics());
    json["select"]["cvar_weight"] = 0.5.into();
    assert!(serde_json::from_value::<Plan>(json).unwrap_err().to_string().contains("duplicate"));
}

#[test]
fn a_builder_obeys_the_rules_of_a_run_file() {
    let of = |name: &str| Plan::builder().run_file(RunFile::embedded(name).unwrap());
    let resolved = of("eslm-loss").steps(7).set("select.mix", 0.5).resolve().unwrap();
    assert_eq!((resolved.plan.steps, resolved.plan.select.score), (7, Score::Loss));
    assert_eq!(resolved.value("steps").unwrap().origin, Origin::Builder);
    assert!(
        resolved.notes().iter().any(|n| n.contains("select.mix is now called select.cvar_weight"))
    );
    for (builder, part) in [
        (of("clm").alpha(0.2), "plan builder: select.alpha has no meaning with method = \"clm\""),
        (Plan::builder().seed(u64::MAX), "plan builder: seed: expected a whole number"),
        (Plan::builder().set("select.alhpa", 0.2), "did you mean \"select.alpha\"?"),
        (Plan::builder().set("select.mix", 0.2).set("select.cvar_weight", 0.2), "keep one of them"),
        (Plan::builder().lambda(0.5), "weighs a teacher, but there is none"),
    ] {
        let message = builder.build().unwrap_err().to_string();
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn run_files_are_found_by_path_by_run_folder_and_by_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.toml"), "steps = 5\n").unwrap();
    let by_folder = RunFile::find(folder.path().to_str().unwrap()).unwrap();
    assert_eq!(load(Some(&by_folder), &Overrides::default()).unwrap().plan.steps, 5);
    assert_eq!(RunFile::find("quickstart").unwrap().name, "built-in quickstart.toml");
    let message = RunFile::find("quikstart").unwrap_err().to_string();
    assert!(message.contains("did you mean \"quickstart\"?"), "{message}");
}

#[test]
fn words_and_devices_parse_and_print() {
    for name in Score::NAMES {
        assert_eq!(name.parse::<Score>().unwrap().to_string(), *name);
    }
    assert!(
        "Entropy".parse::<Score>().unwrap_err().to_string().contains("did you mean \"entropy\"?")
    );
    for (text, device) in [
        ("auto", DeviceSpec::Auto),
        ("cpu", DeviceSpec::Cpu),
        ("cuda", DeviceSpec::Cuda(0)),
        ("cuda:2", DeviceSpec::Cuda(2)),
    ] {
        assert_eq!(text.parse::<DeviceSpec>().unwrap(), device);
        assert_eq!(device.to_string().parse::<DeviceSpec>().unwrap(), device);
    }
    assert!("cuda:".parse::<DeviceSpec>().is_err() && "cuda:-1".parse::<DeviceSpec>().is_err());
    let auto: MicroRows = Value::String("auto".into()).try_into().unwrap();
    assert_eq!(auto, MicroRows::Auto);
}

#[test]
fn lambda_and_temperature_move_from_their_start_to_their_end() {
    let objective = |more: &str| {
        plan(&format!("teacher = 't'\nsteps = 11\n[objective]\nlambda = 0.8\n{more}")).objective
    };
    let linear = objective("lambda_end = 0.0\ntemperature = 2\ntemperature_end = 1\n");
    assert_eq!(
        (linear.lambda_at(0, 11), linear.lambda_at(10, 11), linear.lambda_at(99, 11)),
        (0.8, 0.0, 0.0)
    );
    assert!(
        (linear.lambda_at(5, 11) - 0.4).abs() < 1e-12
            && (linear.temperature_at(5, 11) - 1.5).abs() < 1e-12
    );
    assert_eq!((linear.temperature_at(0, 11), linear.temperature_at(10, 11)), (2.0, 1.0));
    assert_eq!(linear.lambda_at(0, 1), 0.8, "a run of one step starts and does not end");
    let cosine = objective("lambda_end = 0.0\nschedule = 'cosine'\n");
    assert_eq!((cosine.lambda_at(0, 11), cosine.lambda_at(10, 11)), (0.8, 0.0));
    assert!(
        (cosine.lambda_at(2, 11) - 0.4 * (1.0 + (0.2 * std::f64::consts::PI).cos())).abs() < 1e-12
    );
    assert_eq!(objective("").lambda_at(7, 11), 0.8);
    let late = plan("teacher = 't'\n[objective]\nlambda = 0\nlambda_end = 0.5\n");
    assert!(late.uses_teacher(), "a teacher that speaks later is a teacher");
}

#[test]
fn a_signal_stands_for_a_teacher() {
    let plan = plan("[data]\nsignal = 's'");
    assert!(plan.is_taught() && plan.uses_teacher() && plan.live_teacher().is_none());
    assert_eq!((plan.select.score, plan.objective.lambda), (Score::Excess, 0.5));
    assert_eq!((plan.objective.signal, plan.objective.samples), (Signal::Stored, 0));
    assert_eq!(plan.verb(), "distill");
    let both = from_text("teacher = 't'\n[data]\nsignal = 's'").unwrap();
    assert!(both.notes().iter().any(|note| note.contains("the teacher t is left out")));
    assert_eq!(both.plan.teacher, None);
    let mut flag = Overrides::default();
    flag.put("teacher", "t", Origin::Flag("teacher")).unwrap();
    let refused = load(Some(&file("[data]\nsignal = 's'")), &flag).unwrap_err().to_string();
    assert!(refused.starts_with("--teacher: the teacher t has no place"), "{refused}");
    for (text, parts) in [
        ("[data]\nsignal = 's'\n[objective]\nsignal = 'dense'", "no stored signal has"),
        ("teacher = 't'\n[objective]\nsignal = 'stored'", "add --signal DIR"),
        ("teacher = 't'\n[objective]\nsignal = 'sampled'\nsamples = 0", "at least 1"),
        ("init = 'teacher-layers'\nteacher = 't'\n[data]\nsignal = 's'", "has none"),
    ] {
        let refused = from_text(text).unwrap_err().to_string();
        assert!(refused.contains(parts), "{text}: {refused}");
    }
}

#[test]
fn groups_are_trees_of_the_processes() {
    for (asked, processes, found) in [
        (0, 1, 1),
        (0, 4, 4),
        (1, 1, 1),
        (4, 1, 4),
        (4, 2, 4),
        (4, 4, 4),
        (2, 4, 4),
        (4, 3, 3),
        (3, 3, 3),
        (3, 1, 3),
        (6, 3, 6),
        (6, 2, 2),
        (12, 3, 12),
    ] {
        let plan = plan(&format!("[machine]\ngroups = {asked}\n"));
        assert_eq!(plan.groups(processes), found, "{asked} asked, {processes} processes");
    }
}

#[test]
fn what_selection_alone_reads_is_not_asked_of_clm_in_silence() {
    let of = |settings: &[&str]| {
        let mut overrides = Overrides::default();
        settings.iter().for_each(|setting| overrides.set(setting).unwrap());
        load(Some(&file("method = 'clm'\n[select]\ntail = 'low'\n")), &overrides).unwrap().notes()
    };
    assert_eq!(of(&[]), Vec::<String>::new(), "a file made for eslm");
    let said = of(&["select.pool=step", "select.burn_in=3"]);
    assert_eq!(
        said,
        [
            "method = \"clm\" trains on every token, and select.pool, select.burn_in have no meaning there"
        ]
    );
    let mut flag = Overrides::default();
    flag.put("select.score", "entropy", Origin::Flag("score")).unwrap();
    let refused = load(Some(&file("method = 'clm'\n")), &flag).unwrap_err().to_string();
    assert!(refused.starts_with("--score: select.score has no meaning"), "{refused}");
}
