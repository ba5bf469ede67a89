//! `inspect` from outside: the page, the terminal, the numbers, the errors.

use crate::support::place::without_settings;
use crate::support::tiny;
use serde_json::Value;
use std::fs;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const RUN_FILE: &str = "steps = 2\nstudent = 'tiny'\nmethod = 'clm'\n[shape]\nn_layer = 1\nn_head = 2\nn_embd = 16\nn_positions = 16\n\
                        [data]\ncontext = 16\nrows = 4\n[eval]\nrows = 2\n";

fn run(place: &TempDir, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eslm-kd"));
    without_settings(&mut command);
    command.args(args).arg("--offline").current_dir(place.path()).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn a_text_is_scored_shown_and_written() {
    let place = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::write(place.path().join("run.toml"), RUN_FILE).unwrap();
    fs::write(place.path().join("text.txt"), "One fine <day> & another fine day.\nAnd one more.")
        .unwrap();
    let data = tiny::data().display().to_string();
    let (code, _, error) =
        run(&place, &["pretrain", "run.toml", "--data", &data, "--out", "m", "-q"]);
    assert_eq!(code, 0, "{error}");

    let page = [
        "inspect",
        "m",
        "--teacher",
        "m",
        "--text",
        "text.txt",
        "--out",
        "page.html",
        "--mark",
        "0.25",
    ];
    let (code, out, error) = run(&place, &page);
    assert_eq!(code, 0, "{error}");
    assert!(
        out.contains("page: page.html") && out.contains("0.25") && !out.contains("fine"),
        "{out}"
    );
    let html = fs::read_to_string(place.path().join("page.html")).unwrap();
    crate::compare::check_well_formed(&html);
    assert!(
        html.contains("&lt;") && html.contains("KL(teacher || model)") && html.contains("</html>")
    );

    let (code, out, _) = run(&place, &["inspect", "m", "--text", "text.txt"]);
    assert_eq!(code, 0);
    assert!(
        out.contains('[') && out.contains("VaR(0.5)") && out.contains("CE of dropped"),
        "{out}"
    );

    let (_, out, _) = run(
        &place,
        &["inspect", "m", "--text", "text.txt", "--score", "loss", "--max-tokens", "9", "--json"],
    );
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (json["tokens"].as_array().unwrap().len(), &json["score"]),
        (9, &Value::from("loss"))
    );
    let kept =
        json["tokens"].as_array().unwrap().iter().filter(|t| t["figures"]["kept"] == true).count();
    assert_eq!(kept, 4, "half of eight predictions");

    for (args, status, part) in [
        (&["--score", "kl"][..], 2, "add --teacher"),
        (&["--alpha", "1.5"], 2, "expected numbers in [0, 1)"),
        (&["--pool", "carried"], 2, "carried"),
        (&["--context", "17"], 2, "between 1 and 16"),
    ] {
        let (code, out, error) =
            run(&place, &[&["inspect", "m", "--text", "text.txt"], args].concat());
        assert!(
            code == status && out.is_empty() && error.contains(part),
            "{args:?}: {code} {error}"
        );
    }
    fs::write(place.path().join("text.txt"), [b'a', 0xFF]).unwrap();
    let (code, _, error) = run(&place, &["inspect", "m", "--text", "text.txt"]);
    assert!(code == 3 && error.contains("byte 1"), "{code} {error}");
}
