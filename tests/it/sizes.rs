//! Wherever a student is shown, so is its true size; a name that holds for another vocabulary is
//! noted once.

use crate::support::place::{Place, data};

/// 320 x 384 + 256 x 384 + 6 (12 x 384^2 + 13 x 384) + 2 x 384: `pretrain-14m` on the world's data.
const FOURTEEN: u64 = 10_868_736;

#[test]
fn plans_say_what_a_name_does_not_hold_for() {
    let place = Place::new();
    let data = data();
    let plan = place.json(&["plan", "pretrain-14m", "--data", &data]);
    assert_eq!(plan["student"]["parameters"], FOURTEEN);
    let notes = plan["notes"].to_string();
    for part in ["10,868,736 parameters", "320 tokens", "pretrain-14m are those of 13,891,584"] {
        assert!(notes.contains(part), "no {part:?} in {notes}");
    }
    let (_, text, _) = place.run(&["plan", "pretrain-14m", "--data", &data]);
    assert_eq!(text.matches("note: the student has").count(), 1, "{text}");
    // Without data a preset is planned with the vocabulary that it is named for.
    let plan = place.json(&["plan", "pretrain-clm"]);
    assert!(!plan["notes"].to_string().contains("the student has"), "{plan}");
}

#[test]
fn runs_and_comparisons_show_the_size_at_hand() {
    let place = Place::new();
    let data = data();
    let small = ["--steps", "1", "--set", "data.rows=1", "--set", "data.context=8"];
    let small = [&small[..], &["--set", "eval.rows=1", "--set", "eval.stride=8"]].concat();
    let args = [&["pretrain", "clm", "--data", &data, "--out", "run"], &small[..]].concat();
    let (code, text, notes) = place.run(&args);
    assert_eq!(code, 0, "{notes}");
    // 320 x 192 + 256 x 192 + 6 (12 x 192^2 + 13 x 192) + 2 x 192
    assert!(text.contains("parameters") && text.contains("2,780,160"), "{text}");
    assert!(notes.contains("\nclm tiny of 2,780,160 parameters\n"), "{notes}");
    assert_eq!(notes.matches("note: the student has 2,780,160").count(), 1, "{notes}");
    assert_eq!(place.json(&["runs", "show", "run"])["parameters"], 2_780_160);
    let again = [&["pretrain", "clm", "--data", &data, "--out", "again"], &small[..]].concat();
    assert_eq!(place.json(&again)["parameters"], 2_780_160);

    let set: Vec<&str> = small[2..].to_vec();
    let arms =
        ["compare", "clm+steps=1", "b:clm+steps=1+optim.lr=0.1", "--seeds", "1", "--out", "c"];
    let args = [&arms[..], &["--data", &data], &set[..]].concat();
    let (code, text, notes) = place.run(&args);
    assert_eq!(code, 0, "{notes}");
    assert_eq!(notes.matches("note: the student has 2,780,160").count(), 1, "{notes}");
    assert_eq!(text.lines().filter(|line| line.contains("2,780,160")).count(), 2, "{text}");
    let report = place.json(&["compare", "--report-only", "--out", "c"]);
    assert_eq!(report["arms"][1]["parameters"], 2_780_160);
}
