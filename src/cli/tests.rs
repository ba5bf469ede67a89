//! The command line's surface, frozen: adding or renaming a flag is a decision, and this list is
//! where it is made.

use super::*;
use crate::config::Origin;
use clap::{CommandFactory, FromArgMatches};

/// Flags with their environment twins, positions in brackets.
fn surface<A: clap::Args>() -> Vec<String> {
    let command = A::augment_args(clap::Command::new("verb"));
    let describe = |arg: &clap::Arg| {
        let mut name = match (arg.get_short(), arg.get_long()) {
            (Some(s), Some(l)) => format!("-{s} --{l}"),
            (None, Some(l)) => format!("--{l}"),
            _ => arg.get_value_names().map_or_else(String::new, |n| format!("[{}]", n.join(" "))),
        };
        if let Some(env) = arg.get_env() {
            name += &format!(" {}", env.to_string_lossy());
        }
        name
    };
    command.get_arguments().map(describe).collect()
}

#[test]
fn the_flags_of_runs_and_their_twins_are_these() {
    let knobs = [
        "--teacher ESLM_KD_TEACHER",
        "--signal ESLM_KD_SIGNAL",
        "--student ESLM_KD_STUDENT",
        "--data ESLM_KD_DATA",
        "--method ESLM_KD_METHOD",
        "--score ESLM_KD_SCORE",
        "--alpha ESLM_KD_ALPHA",
        "--steps ESLM_KD_STEPS",
        "--seed ESLM_KD_SEED",
        "--lr ESLM_KD_LR",
        "--micro-rows ESLM_KD_MICRO_ROWS",
        "--device ESLM_KD_DEVICE",
    ];
    let config: Vec<&str> = ["[CONFIG]", "--set"].into_iter().chain(knobs).collect();
    let run: Vec<&str> = config.iter().copied().chain(["--out", "--resume"]).collect();
    let plan: Vec<&str> = config.iter().copied().chain(["--processes"]).collect();
    assert_eq!(surface::<plan::PlanArgs>(), plan);
    assert_eq!(surface::<pretrain::PretrainArgs>(), run);
    assert_eq!(surface::<distill::DistillArgs>(), run);
}

#[test]
fn the_flags_of_the_other_verbs_are_these() {
    assert_eq!(
        surface::<signal::SignalWriteArgs>(),
        [
            "--teacher ESLM_KD_TEACHER",
            "--data ESLM_KD_DATA",
            "--out",
            "--signal",
            "--context",
            "--stride",
            "--temperature",
            "--seed ESLM_KD_SEED",
            "--shard",
            "--device ESLM_KD_DEVICE",
            "--dtype",
        ]
    );
    assert_eq!(surface::<signal::SignalDirArgs>(), ["[DIR]"]);
    assert_eq!(surface::<signal::SignalLsArgs>(), ["[DIR]"]);
    assert_eq!(surface::<signal::SignalMixArgs>(), ["[DIR[=WEIGHT]]", "--out"]);
    assert_eq!(
        surface::<compare::CompareArgs>(),
        [
            "[[LABEL:]CONFIG[+KEY=VALUE...]]",
            "--set",
            "--data ESLM_KD_DATA",
            "--seeds",
            "--out",
            "--budget",
            "--also",
            "--baseline",
            "--keep-checkpoints",
            "--eval-tokens",
            "--report-only",
        ]
    );
    assert_eq!(
        surface::<eval::EvalArgs>(),
        [
            "[MODEL]",
            "--device ESLM_KD_DEVICE",
            "--data ESLM_KD_DATA",
            "--context",
            "--stride",
            "--bos"
        ]
    );
    assert_eq!(
        surface::<generate::GenerateArgs>(),
        [
            "[MODEL]",
            "--device ESLM_KD_DEVICE",
            "--prompt",
            "--temperature",
            "--top-k",
            "--top-p",
            "--seed ESLM_KD_SEED",
            "--max-tokens",
        ]
    );
    assert_eq!(
        surface::<inspect::InspectArgs>(),
        [
            "[MODEL]",
            "--device ESLM_KD_DEVICE",
            "--text",
            "--teacher",
            "--out",
            "--plain",
            "--score",
            "--alpha",
            "--mark",
            "--pool",
            "--tail",
            "--temperature",
            "--context",
            "--max-tokens",
        ]
    );
    assert_eq!(
        surface::<export::ExportArgs>(),
        ["[RUN|FOLDER]", "--out", "--format", "--type", "--vocab"]
    );
    assert_eq!(surface::<report::ReportArgs>(), ["[RUN]", "--out", "--watch"]);
    assert_eq!(surface::<runs::RunsArgs>(), ["[FOLDER]"]);
    assert_eq!(surface::<runs::RunsShowArgs>(), ["[RUN]"]);
    assert_eq!(surface::<completions::CompletionsArgs>(), ["[SHELL]"]);
    assert!(surface::<doctor::DoctorArgs>().is_empty());
    assert_eq!(surface::<man::ManArgs>(), ["--out"]);
    assert_eq!(surface::<doc::DocArgs>(), ["[WHAT]"]);
    assert_eq!(surface::<cache::CacheLsArgs>(), ["[REPO]"]);
    assert_eq!(surface::<cache::CacheVerifyArgs>(), ["[REPO]", "--remove"]);
    assert_eq!(surface::<cache::CachePruneArgs>(), ["[REPO]", "--dry-run"]);
    assert_eq!(
        surface::<signal::SignalImportArgs>(),
        [
            "--input",
            "--data ESLM_KD_DATA",
            "--out",
            "--context",
            "--top-k",
            "--name",
            "--vocab-size",
        ]
    );
    assert_eq!(
        surface::<Globals>(),
        [
            "--json ESLM_KD_JSON",
            "-q --quiet ESLM_KD_QUIET",
            "-v --verbose ESLM_KD_VERBOSE",
            "--offline ESLM_KD_OFFLINE",
        ]
    );
}

#[test]
fn the_flags_of_the_verbs_that_read_text_are_these() {
    assert_eq!(
        surface::<prepare::PrepareArgs>(),
        [
            "--input",
            "--tokenizer",
            "--out",
            "--text-field",
            "--end-token",
            "--valid",
            "--valid-fraction",
            "--skip-bad",
        ]
    );
    assert_eq!(
        surface::<tokenizer::TokenizerTrainArgs>(),
        ["--input", "--vocab-size", "--out", "--text-field", "--min-frequency", "--skip-bad"]
    );
}

#[test]
fn clap_finds_the_command_line_consistent_and_every_verb_has_examples() {
    let command = Cli::command();
    command.clone().debug_assert();
    for verb in command.get_subcommands() {
        let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("Examples:"), "{} has no examples", verb.get_name());
        assert!(verb.get_about().is_some(), "{} does not say what it does", verb.get_name());
    }
}

#[test]
fn every_shell_completes_every_verb_and_the_words_of_keys() {
    for shell in <clap_complete::Shell as clap::ValueEnum>::value_variants() {
        let text = completions::text(*shell);
        let verbs = Cli::command();
        for verb in verbs.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            assert!(text.contains(verb.get_name()), "{shell}: {}", verb.get_name());
        }
        assert!(text.contains("keep-checkpoints"), "{shell}");
        // Elvish and PowerShell complete no values.
        use clap_complete::Shell::{Bash, Fish, Zsh};
        if matches!(shell, Bash | Fish | Zsh) {
            assert!(text.contains("entropy-kl"), "{shell}: a score");
        }
    }
}

/// What bash itself completes the last of these words to.
#[test]
fn bash_completes_verbs_flags_and_words() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("eslm-kd");
    std::fs::write(&script, completions::text(clap_complete::Shell::Bash)).unwrap();
    const ASK: &str = "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                       f=$(complete -p eslm-kd | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
                       $f eslm-kd \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"; \
                       echo \"${COMPREPLY[*]}\"";
    let ask = |words: &[&str]| {
        let mut bash = std::process::Command::new("bash");
        bash.args(["--norc", "-c", ASK, "bash"]).arg(&script).args(words);
        let output = bash.output().ok()?;
        assert!(output.status.success(), "{output:?}");
        Some(String::from_utf8(output.stdout).unwrap().trim().to_string())
    };
    for (words, expected) in [
        (&["eslm-kd", "p"][..], "prepare pretrain plan"),
        (&["eslm-kd", "do"], "download doctor"),
        (&["eslm-kd", "pretrain", "--sc"], "--score"),
        (&["eslm-kd", "pretrain", "--score", "e"], "entropy entropy-kl excess"),
        (&["eslm-kd", "cache", "p"], "prune"),
        (&["eslm-kd", "cache", "prune", "--d"], "--dry-run"),
        (&["eslm-kd", "runs", "s"], "show"),
        (&["eslm-kd", "export", "--format", "g"], "gguf"),
        (&["eslm-kd", "completions", "z"], "zsh"),
    ] {
        let Some(found) = ask(words) else { return eprintln!("skipped: no bash here") };
        assert_eq!(found, expected, "{words:?}");
    }
}

#[test]
fn every_verb_has_a_manual_page_with_its_flags_and_its_examples_as_they_stand() {
    let pages = man::pages().unwrap();
    let page = |name: &str| {
        let found = pages.iter().find(|(file, _)| file == name);
        found.unwrap_or_else(|| panic!("no {name}")).1.as_str()
    };
    assert_eq!(pages[0].0, "eslm-kd.1");
    for verb in Cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let text = page(&format!("eslm-kd-{}.1", verb.get_name()));
        assert!(text.contains(".TH") && text.contains(".SH EXAMPLES\n.nf\n"), "{text}");
        let examples = verb.get_after_help().unwrap().to_string();
        let lines = examples.lines().filter(|line| line.starts_with("  eslm-kd "));
        for line in lines {
            let line = line.replace('\\', "\\e").replace('-', "\\-");
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
    }
    assert!(page("eslm-kd-cache-prune.1").contains("dry\\-run"));
    assert!(!pages.iter().any(|(name, _)| name == "eslm-kd-doc.1"), "hidden verbs have none");
}

#[test]
fn the_help_of_every_verb_fits_a_terminal_of_80_columns() {
    fn check(mut command: clap::Command) {
        let wide = |line: &str| line.chars().count() > 80 && !line.starts_with("Usage:");
        // Examples may be longer: a command is not broken.
        let help = command.clone().after_help("").term_width(80).render_help().to_string();
        let line = help.lines().find(|line| wide(line));
        assert_eq!(line, None, "{}", command.get_name());
        command.build();
        command.get_subcommands().cloned().for_each(check);
    }
    check(Cli::command().max_term_width(80));
}

#[test]
fn every_knob_is_a_key() {
    for knob in KNOBS {
        assert!(crate::config::keys::find(knob.key).is_some(), "--{} sets {}", knob.flag, knob.key);
        assert_eq!(knob.env, format!("ESLM_KD_{}", knob.flag.to_uppercase().replace('-', "_")));
    }
}

/// Parses the arguments of one verb without its name.
fn parse<A: clap::Args + FromArgMatches>(args: &[&str]) -> A {
    // Whatever the environment of whoever runs the tests says.
    let command = A::augment_args(clap::Command::new("verb").no_binary_name(true))
        .mut_args(|arg| arg.env(None::<&str>));
    let matches = command.try_get_matches_from(args).unwrap_or_else(|e| panic!("{e}"));
    A::from_arg_matches(&matches).unwrap()
}

#[test]
fn flags_become_values_with_their_origin() {
    let args: pretrain::PretrainArgs =
        parse(&["--alpha", "0.25", "--set", "optim.lr=1e-2", "--lr", "0.5"]);
    let resolved = args.resolve().unwrap();
    assert_eq!((resolved.plan.select.alpha, resolved.plan.optim.lr), (0.25, 0.01));
    assert_eq!(resolved.value("select.alpha").unwrap().origin, Origin::Flag("alpha"));
    assert_eq!(resolved.value("optim.lr").unwrap().origin, Origin::Set, "--set is the last word");
    let wrong: pretrain::PretrainArgs = parse(&["--alpha", "-1"]);
    let message = wrong.resolve().unwrap_err().to_string();
    assert!(
        message.starts_with("--alpha: select.alpha: expected a number in [0, 1), found -1"),
        "{message}"
    );
}

#[test]
fn distill_without_arguments_is_the_quickstart() {
    let resolve = |args: &[&str]| parse::<distill::DistillArgs>(args).resolve();
    let plan = resolve(&[]).unwrap().plan;
    assert_eq!((plan.teacher.as_deref(), plan.student.as_str()), (Some("quickstart"), "tiny"));
    assert_eq!(resolve(&["--steps", "7"]).unwrap().plan.student, "tiny");
    let medium = resolve(&["--teacher", "gpt2-medium"]).unwrap().plan;
    assert_eq!((medium.student.as_str(), medium.objective.lambda), ("gpt2-124m", 0.5));
    // It has a teacher, whatever ranks the tokens.
    for score in ["kl", "excess", "teacher-entropy", "entropy"] {
        let plan = resolve(&["--score", score]).unwrap().plan;
        assert_eq!(
            (plan.select.score.to_string().as_str(), plan.student.as_str()),
            (score, "tiny")
        );
        let set = format!("select.score={score}");
        assert_eq!(resolve(&["--set", &set]).unwrap().plan, plan);
    }
    let message = resolve(&["--data", "somewhere"]).unwrap_err().to_string();
    assert!(message.contains("distill needs a teacher"), "{message}");
}

#[test]
fn resume_reads_the_run_folder_when_no_config_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.toml"), "steps = 5\n").unwrap();
    let out = folder.path().to_str().unwrap();
    let steps = |args: &[&str]| parse::<pretrain::PretrainArgs>(args).resolve().unwrap().plan.steps;
    assert_eq!(steps(&["--out", out, "--resume"]), 5);
    assert_eq!(steps(&["--out", out, "--resume", "--steps", "6"]), 6);
    assert_eq!(steps(&["--out", out]), 1000, "a new run ignores what stands there");
}

#[test]
fn a_quickstart_goes_on_by_its_own_settings() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let plan = |args: &[&str]| parse::<distill::DistillArgs>(args).resolve().unwrap().plan;
    let resume = ["--out", out, "--resume"];
    assert_eq!(plan(&resume).steps, 320, "nothing there says otherwise");
    let text =
        "steps = 20\nteacher = 'quickstart'\nstudent = 'tiny'\n[select]\nscore = 'entropy'\n";
    std::fs::write(folder.path().join("quickstart.toml"), text).unwrap();
    assert_eq!(plan(&resume).steps, 20);
    assert_eq!(plan(&resume).select.score, crate::config::Score::Entropy);
    assert_eq!(plan(&["--out", out, "--resume", "--steps", "7"]).steps, 7);
    assert_eq!(plan(&["--out", out]).steps, 320, "a new one ignores what stands there");
}
