//! The `sh` blocks of docs/start and docs/how-to run, page by page, on small text and small models.

use super::{root, shown};
use crate::support::hub_server::HubServer;
use crate::support::place::{Place, save_random, without_settings};
use crate::support::tiny;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

/// What stands on the path under the program's name: the program, with trainings cut short.
const SHORT: &str = r#"#!/bin/sh
few="--set steps=4 --set schedule.warmup=1"
small="--set data.context=16 --set data.rows=2 --set eval.every=2 --set checkpoint.every=2
  --set shape.n_layer=1 --set shape.n_head=2 --set shape.n_embd=16"
case " $* " in
  *" --resume "* | *" --report-only "*) exec "$PROGRAM" "$@" ;;
  " distill "*" --data "* | " pretrain "* | " compare "* | *" plan "*) exec "$PROGRAM" "$@" $few $small ;;
  " distill "*) exec "$PROGRAM" "$@" $few ;;
  *) exec "$PROGRAM" "$@" ;;
esac
"#;

/// The `sh` blocks of a page.
fn blocks(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match (inside, line) {
            (false, "```sh") => found.push(String::new()),
            (true, "```") => {}
            (true, line) => {
                let block = found.last_mut().unwrap();
                *block += line;
                block.push('\n');
                continue;
            }
            _ => continue,
        }
        inside = !inside;
    }
    found
}

fn run_pages(folder: &str) {
    let common = Place::new();
    fs::create_dir(common.path("bin")).unwrap();
    let program = common.path("bin/eslm-kd");
    fs::write(&program, SHORT).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", common.path("bin").display());
    save_random(&common.path("model"), tiny::VOCAB, 64, true);
    let server = HubServer::start(0).unwrap();
    for size in ["", "-medium", "-large"] {
        let id = &format!("openai-community/gpt2{size}");
        server.add_folder(id, &common.path("model")).unwrap();
    }
    let stories = fs::read(tiny::world().join("stories.jsonl")).unwrap();
    let mut ran = 0;
    let mut pages: Vec<_> =
        fs::read_dir(root().join(folder)).unwrap().map(|e| e.unwrap().path()).collect();
    pages.sort();
    for page in pages.iter().filter(|path| path.extension().is_some_and(|e| e == "md")) {
        let place = Place::new();
        let mut text =
            GzEncoder::new(File::create(place.path("text.jsonl.gz")).unwrap(), Compression::fast());
        text.write_all(&stories).unwrap();
        text.finish().unwrap();
        fs::write(place.path("page.txt"), "One fine day the fox ran away.\n".repeat(40)).unwrap();
        for block in blocks(&fs::read_to_string(page).unwrap()) {
            let mut command = Command::new("sh");
            without_settings(&mut command);
            command.args(["-e", "-c", &block]).current_dir(place.path("")).stdin(Stdio::null());
            command.env("PATH", &path).env("PROGRAM", env!("CARGO_BIN_EXE_eslm-kd"));
            command.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", place.path("home"));
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}:\n{block}\n{said}", shown(page));
            ran += 1;
        }
    }
    assert!(ran >= 10, "{folder}: {ran} blocks");
}

#[test]
fn the_commands_of_the_first_pages_run() {
    run_pages("docs/start");
}

#[test]
fn the_commands_of_the_how_to_pages_run() {
    run_pages("docs/how-to");
}
