//! Claims of size, against a program that has little address space to believe them with.

use super::samples::*;
use crate::support::place::{copy_folder, without_settings};
use crate::support::tiny;
use ::parquet::basic::{Compression, GzipLevel};
use ::parquet::file::properties::{EnabledStatistics, WriterProperties};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// What the program may map at all, in KiB: enough for its ordinary work, less than any of the
/// claims below.
const ADDRESS_SPACE: u64 = 3 << 20;

/// Exit status and stderr of the program in a folder.
fn run(place: &TempDir, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new("sh");
    without_settings(&mut command);
    let limited = format!("ulimit -v {ADDRESS_SPACE} && exec \"$@\"");
    command
        .args(["-c", &limited, "sh", env!("CARGO_BIN_EXE_eslm-kd")])
        .args(args)
        .args(["--offline", "--quiet"]);
    let out = command
        .current_dir(place.path())
        .env("TMPDIR", place.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

fn accepted(place: &TempDir, args: &[&str]) {
    let (code, stderr) = run(place, args);
    assert_eq!(code, Some(0), "{args:?}: {stderr}");
}

fn refused(place: &TempDir, args: &[&str], parts: &[&str]) {
    let (code, stderr) = run(place, args);
    assert!(matches!(code, Some(2 | 3)), "{args:?}: {code:?} {stderr}");
    assert!(
        stderr.starts_with("error: ") && stderr.lines().count() == 1 && stderr.len() < 10_000,
        "{args:?}: {stderr}"
    );
    for part in parts {
        assert!(stderr.contains(part), "{args:?}: no {part:?} in {stderr}");
    }
}

/// A file that claims `size` bytes and takes none.
fn hollow(path: &Path, size: u64) {
    File::create(path).unwrap().set_len(size).unwrap();
}

#[test]
fn models_and_data_that_claim_to_be_huge() {
    let place = folder();
    let at = |name: &str| place.path().join(name);
    model(&at("m"));
    copy_folder(&tiny::world().join("tokenizer"), &at("m"));
    let data = tiny::data().display().to_string();
    // The vocabulary of 11 is refused only after everything was loaded, so this shows that the
    // space suffices.
    refused(
        &place,
        &["eval", "m", "--data", &data],
        &["token 0 is id 46, and the model has only 11"],
    );

    let config = fs::read(at("m/config.json")).unwrap();
    for (key, value) in
        [("n_embd", "1000000000"), ("n_layer", "1000000000000"), ("n_layer", "16000000")]
    {
        let text = String::from_utf8(config.clone()).unwrap();
        let (before, after) = text.split_once(&format!("\"{key}\": ")).unwrap();
        let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
        fs::write(at("m/config.json"), format!("{before}\"{key}\": {value}{after}")).unwrap();
        refused(&place, &["eval", "m", "--data", &data], &[key, value]);
    }
    hollow(&at("m/config.json"), 1 << 40);
    refused(&place, &["eval", "m", "--data", &data], &["config.json", "longer than"]);
    fs::write(at("m/config.json"), config).unwrap();

    let weights = fs::read(at("m/model.safetensors")).unwrap();
    for length in [1u64 << 62, u64::MAX, 1 << 33] {
        let mut bytes = weights.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(at("m/model.safetensors"), bytes).unwrap();
        refused(
            &place,
            &["eval", "m", "--data", &data],
            &["model.safetensors", "not a valid safetensors file"],
        );
    }
    fs::write(at("m/model.safetensors"), weights).unwrap();

    copy_folder(&tiny::data(), &at("d"));
    let mut bytes = fs::read(at("d/train.bin")).unwrap();
    bytes[16..24].copy_from_slice(&(1u64 << 60).to_le_bytes());
    fix_token_header(&mut bytes);
    fs::write(at("d/train.bin"), bytes).unwrap();
    refused(
        &place,
        &["pretrain", "--data", "d", "--student", "tiny", "--out", "r"],
        &["train.bin", "1152921504606846976"],
    );
    hollow(&at("d/tokenizer/tokenizer.json"), 1 << 40);
    refused(
        &place,
        &["pretrain", "--data", "d", "--student", "tiny", "--out", "r"],
        &["tokenizer.json", "longer than"],
    );
    hollow(&at("run.toml"), 1 << 40);
    refused(&place, &["plan", "run.toml"], &["run.toml", "longer than"]);
    let extreme = [
        "shape.n_layer=16777216",
        "shape.n_embd=16777216",
        "shape.n_head=1",
        "data.rows=1073741824",
    ];
    let sets: Vec<&str> = extreme.iter().flat_map(|s| ["--set", s]).collect();
    refused(&place, &[&["plan", "--student", "tiny"][..], &sets].concat(), &["model shape"]);
    let extreme = [
        "data.rows=1073741824",
        "shape.n_positions=16777216",
        "data.context=16777216",
        "select.alpha_seq=0.5",
    ];
    let sets: Vec<&str> = extreme.iter().flat_map(|s| ["--set", s]).collect();
    refused(&place, &[&["plan", "--student", "tiny"][..], &sets].concat(), &["any machine"]);
}

#[test]
fn texts_without_an_end_and_archives_that_unpack_to_gigabytes() {
    let place = folder();
    let at = |name: &str| place.path().join(name);
    let tokenizer = tiny::world().join("tokenizer").display().to_string();
    let prepare = |input: &'static str| {
        ["prepare", "--input", input, "--tokenizer", &tokenizer, "--out", "out"].map(String::from)
    };
    fs::write(at("good.jsonl.gz"), gzip(b"{\"text\": \"Anna\"}\n")).unwrap();
    let args = prepare("good.jsonl.gz");
    accepted(&place, &args.each_ref().map(String::as_str));

    hollow(&at("line.jsonl"), 200 << 20);
    hollow(&at("line.txt"), 200 << 20);
    // A kilobyte per megabyte: 4 GiB from members of 16 MiB, one after the other.
    let member = gzip(&vec![b' '; 16 << 20]);
    for name in ["bomb.jsonl.gz", "bomb.txt.gz"] {
        let mut file = File::create(at(name)).unwrap();
        (0..256).for_each(|_| file.write_all(&member).unwrap());
    }
    fs::write(at("word.txt"), "a".repeat(60 << 20)).unwrap();
    // A list of numbers as the text takes 30 times its bytes once it is built.
    let zeros = format!("{{\"text\": [{}0]}}", "0,".repeat(30 << 20));
    fs::write(at("list.jsonl"), zeros).unwrap();
    for (input, part) in [
        ("line.jsonl", "longer than 64.0 MiB"),
        ("line.txt", "more than 64.0 MiB"),
        ("bomb.jsonl.gz", "longer than 64.0 MiB"),
        ("bomb.txt.gz", "more than 64.0 MiB"),
        ("list.jsonl", "is an array; expected a string"),
    ] {
        let args = prepare(input);
        refused(&place, &args.each_ref().map(String::as_str), &[input, part]);
    }
    let train =
        |input| ["tokenizer", "train", "--input", input, "--vocab-size", "300", "--out", "tok"];
    refused(&place, &train("bomb.jsonl.gz"), &["bomb.jsonl.gz", "longer than 64.0 MiB"]);
    // A word is merged in a hundred times its bytes.
    refused(
        &place,
        &train("word.txt"),
        &["word.txt, before byte", "a word of more than 4.00 MiB", "\"aaaa"],
    );
    let args = prepare("word.txt");
    refused(
        &place,
        &args.each_ref().map(String::as_str),
        &["word.txt, before byte", "a word of more than 4.00 MiB"],
    );
}

#[test]
fn states_metrics_and_texts_without_an_end() {
    let place = folder();
    let at = |name: &str| place.path().join(name);
    let data = tiny::data().display().to_string();
    let run_file = "steps = 2\nstudent = 'tiny'\nmethod = 'clm'\n[shape]\nn_layer = 1\nn_head = 2\nn_embd = 16\n\
                    n_positions = 16\n[data]\ncontext = 16\nrows = 4\n[eval]\nrows = 8\n";
    fs::write(at("run.toml"), run_file).unwrap();
    let runs = [
        "compare",
        "a:run.toml",
        "--data",
        &data,
        "--seeds",
        "1",
        "--out",
        "cmp",
        "--keep-checkpoints",
    ];
    accepted(&place, &runs);
    let report = ["compare", "--report-only", "--out", "cmp"];
    let lengthened = |name: &str, size: u64| {
        let good = fs::read(at(name)).unwrap();
        File::options().write(true).open(at(name)).unwrap().set_len(size).unwrap();
        good
    };

    // Metrics are read line by line: three gigabytes that are none are passed over.
    let metrics = "cmp/runs/a/seed-1/metrics.jsonl";
    let good = lengthened(metrics, 3 << 30);
    accepted(&place, &report);
    fs::remove_dir_all(at("cmp/runs/a/seed-1/model")).unwrap();
    accepted(&place, &runs);
    assert_eq!(fs::read(at(metrics)).unwrap().len(), good.len(), "resumed, and the rest is gone");

    for name in ["cmp/runs/a/seed-1/evaluation.json", "cmp/compare.json"] {
        let good = lengthened(name, 1 << 40);
        refused(&place, &report, &[name, "longer than"]);
        fs::write(at(name), good).unwrap();
    }
    accepted(&place, &report);

    let inspect = ["inspect", "cmp/runs/a/seed-1", "--text", "text.txt"];
    hollow(&at("text.txt"), 1 << 40);
    refused(&place, &inspect, &["text.txt: longer than 4.00 MiB", "give a part of it"]);
    fs::write(at("text.txt"), "a".repeat(4 << 20)).unwrap();
    accepted(&place, &inspect);
}

/// A Parquet file of one page that holds `texts`.
fn parquet_page(texts: &[&str], compression: Compression) -> Vec<u8> {
    let properties =
        WriterProperties::builder().set_compression(compression).set_dictionary_enabled(false);
    let properties = properties
        .set_data_page_size_limit(1 << 30)
        .set_statistics_enabled(EnabledStatistics::None);
    parquet_of(&["text"], texts, properties.build())
}

#[test]
fn parquet_pages_that_unpack_to_gigabytes() {
    let place = folder();
    let at = |name: &str| place.path().join(name);
    let tokenizer = tiny::world().join("tokenizer").display().to_string();
    let prepare = ["prepare", "--input", "a.parquet", "--tokenizer", &tokenizer, "--out", "out"];
    // Hexadecimal digits without an order: gzip halves them.
    let mut random = 1_u64;
    let noise: String = (0..11 << 20)
        .map(|_| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            char::from_digit((random >> 60) as u32, 16).unwrap()
        })
        .collect();
    let mut file =
        parquet_page(&[&noise.replace('0', " ")], Compression::GZIP(GzipLevel::default()));
    fs::write(at("a.parquet"), &file).unwrap();
    accepted(&place, &prepare);

    // In place of the page, as long as it: 4 GiB from members of 16 MiB, and empty ones with
    // comments to fill up.
    let is_gzip = |window: &[u8]| window == [0x1F, 0x8B, 8];
    let start = file.windows(3).position(is_gzip).unwrap();
    let footer =
        u32::from_le_bytes(file[file.len() - 8..file.len() - 4].try_into().unwrap()) as usize;
    let end = file.len() - 8 - footer;
    let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    member.write_all(&vec![b' '; 16 << 20]).unwrap();
    let mut bomb = member.finish().unwrap().repeat(256);
    let empty = |comment: usize| {
        let comment = vec![b'x'; comment];
        flate2::GzBuilder::new()
            .comment(comment)
            .write(Vec::new(), flate2::Compression::fast())
            .finish()
            .unwrap()
    };
    let least = empty(0).len();
    while bomb.len() < end - start {
        let left = end - start - bomb.len();
        bomb.extend(empty(if left <= 40_000 { left - least } else { 20_000 }));
    }
    assert_eq!(bomb.len(), end - start, "the page is longer than the bomb");
    file[start..end].copy_from_slice(&bomb);
    fs::write(at("a.parquet"), &file).unwrap();
    refused(&place, &prepare, &["a.parquet", "unpacks to more than 256 MiB"]);

    let long = "a ".repeat(1 << 19);
    let texts = [long.as_str(); 257];
    for packing in [Compression::SNAPPY, Compression::UNCOMPRESSED] {
        fs::write(at("a.parquet"), parquet_page(&texts, packing)).unwrap();
        refused(
            &place,
            &prepare,
            &["a.parquet", "says that it has", "expected at most 268,435,456"],
        );
    }
}

#[test]
fn parquet_whose_footer_lies() {
    let place = folder();
    let at = |name: &str| place.path().join(name);
    let tokenizer = tiny::world().join("tokenizer").display().to_string();
    let good = parquet(::parquet::basic::Compression::SNAPPY);
    let prepare = ["prepare", "--input", "a.parquet", "--tokenizer", &tokenizer, "--out", "out"];
    fs::write(at("a.parquet"), &good).unwrap();
    accepted(&place, &prepare);
    let length = good.len();
    let footer = u32::from_le_bytes(good[length - 8..length - 4].try_into().unwrap()) as usize;
    let start = length - 8 - footer;
    // Its own length, then every byte of it as the beginning of a huge number.
    for claim in [u32::MAX, i32::MAX as u32, length as u32] {
        let mut bytes = good.clone();
        bytes[length - 8..length - 4].copy_from_slice(&claim.to_le_bytes());
        fs::write(at("a.parquet"), bytes).unwrap();
        refused(&place, &prepare, &["a.parquet", "not a readable Parquet file"]);
    }
    for part in (start..length - 16).step_by(footer / 12) {
        let mut bytes = good.clone();
        bytes[part..part + 5].copy_from_slice(&[0xFE, 0xFF, 0xFF, 0xFF, 0x0F]);
        fs::write(at("a.parquet"), bytes).unwrap();
        let (code, stderr) = run(&place, &prepare);
        assert!(
            matches!(code, Some(0 | 3)) && stderr.lines().count() <= 1,
            "byte {part}: {code:?} {stderr}"
        );
    }
}
