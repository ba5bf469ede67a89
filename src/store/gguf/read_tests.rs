//! Files read as models: our own exports of every family and type beside the folder that they were
//! made of, and files that are not as they should be.

use super::family_tests::{BANDS, FAMILIES, YARN, config};
use super::tests::{options, run_of};
use super::*;
use crate::model::parts::{Biases, Positions, RopeScaling, Rotary};
use crate::model::{Family, Gpt2};
use crate::progress::Silent;
use crate::store::export::{ExportOptions, export};
use crate::store::names::{Kind, ModelRef};
use clap::ValueEnum;
use std::fs;
use std::path::PathBuf;

/// The file of a noisy model of this shape, its run folder and the model itself.
fn exported(root: &Path, config: &Gpt2Config, of: GgufType) -> (PathBuf, PathBuf, Gpt2) {
    let (source, params) = run_of(root, config);
    let file = root.join("a.gguf");
    export(&source, &file, &options(of), &Silent).unwrap();
    (file, source, Gpt2::new(config.clone(), params))
}

fn read(file: &Path) -> Gpt2 {
    GgufModel::open(file).unwrap().load(&Device::Cpu).unwrap()
}

fn refused(file: &Path) -> String {
    let read = GgufModel::open(file).and_then(|model| model.load(&Device::Cpu));
    read.map(drop).unwrap_err().to_string()
}

/// Final hidden vectors of some tokens, by bits.
fn computed(model: &Gpt2) -> Vec<u32> {
    let tokens: Vec<u32> = (0..24).map(|i| i * 11 % 300).collect();
    let hidden = model.forward(&tokens, 24).unwrap();
    let logits = hidden.matmul(&model.params.head().t().unwrap()).unwrap();
    super::tests::values(&logits).iter().map(|x| x.to_bits()).collect()
}

#[test]
fn an_f32_file_of_every_family_computes_its_folders_bits() {
    for family in FAMILIES {
        let mut config = config(family);
        if family == Family::Llama {
            config.parts.biases = Biases { qkv: true, output: true, mlp: true };
        }
        let root = tempfile::tempdir().unwrap();
        let (file, _, model) = exported(root.path(), &config, GgufType::F32);
        let found = read(&file);
        if family != Family::Mistral {
            assert_eq!(found.config.function(), config.function());
        }
        for ((name, a), (_, b)) in found.params.named().zip(model.params.named()) {
            let bits = |t| super::tests::values(t).iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(a), bits(b), "{family:?} {name}");
        }
        assert_eq!(computed(&found), computed(&model), "{family:?}");
    }
}

#[test]
fn a_rounded_file_is_the_folder_of_its_rounded_weights() {
    for family in FAMILIES {
        for of in GgufType::value_variants().iter().copied() {
            let root = tempfile::tempdir().unwrap();
            let (file, run, _) = exported(root.path(), &config(family), of);
            let found = read(&file);
            // The folder of the tokenizer, then the folder that is exported from the file.
            let beside = run.join("model/b.gguf");
            fs::rename(&file, &beside).unwrap();
            let folder = root.path().join("hf");
            export(&beside, &folder, &ExportOptions::default(), &Silent).unwrap();
            let again = ModelRef::parse(folder.to_str().unwrap(), Kind::Any).unwrap();
            let again = again.local().unwrap();
            assert_eq!(again.special_ids().unwrap().eos, [299, 9]);
            let again = again.load(&Device::Cpu).unwrap();
            assert_eq!(computed(&again), computed(&found), "{family:?} {}", of.name());
        }
    }
}

#[test]
fn scaled_positions_come_back() {
    for (family, scaling) in [
        (Family::Llama, BANDS),
        (Family::Qwen2, YARN),
        (Family::GptNeoX, RopeScaling::Linear { factor: 3.0 }),
    ] {
        let mut config = config(family);
        let share = if family == Family::GptNeoX { 0.5 } else { 1.0 };
        let rotary = Rotary { share, ..Rotary::new(10000.0, scaling) };
        config.parts.positions = Positions::Rotary(rotary.clone());
        let root = tempfile::tempdir().unwrap();
        let (file, ..) = exported(root.path(), &config, GgufType::F32);
        let Positions::Rotary(found) = read(&file).config.parts.positions else { panic!() };
        let (found, want) = (found.frequencies(8), rotary.frequencies(8));
        let close = |a: &f64, b: &f64| (a - b).abs() <= 1e-7 * b.abs();
        assert!(found.0.iter().zip(&want.0).all(|(a, b)| close(a, b)), "{family:?}");
        assert!(close(&found.1, &want.1), "{family:?}");
    }
}

#[test]
fn a_folder_with_one_file_and_a_tokenizer_is_that_model() {
    let root = tempfile::tempdir().unwrap();
    let (file, run, _) = exported(root.path(), &config(Family::Llama), GgufType::Q8_0);
    let meant = |path: &Path| ModelRef::parse(path.to_str().unwrap(), Kind::Teacher);
    // A run stays the run whatever lies in it, and a model its safetensors.
    fs::copy(&file, run.join("a.gguf")).unwrap();
    fs::copy(&file, run.join("model/a.gguf")).unwrap();
    assert!(meant(&run).unwrap().local().unwrap().gguf.is_none());
    assert!(meant(&run.join("model")).unwrap().local().unwrap().gguf.is_none());
    fs::remove_file(run.join("model/model.safetensors")).unwrap();
    assert_eq!(meant(&run.join("model")).unwrap(), ModelRef::Gguf(run.join("model/a.gguf")));
    for name in ["config.json", "generation_config.json"] {
        let _ = fs::remove_file(run.join("model").join(name));
    }
    let found = meant(&run.join("model")).unwrap().local().unwrap();
    assert!(found.has_tokenizer());
    assert_eq!(found.special_ids().unwrap().eos, [299]);
    let identity = found.identity().unwrap();
    fs::copy(&file, run.join("model/b.gguf")).unwrap();
    let said = meant(&run.join("model")).unwrap_err().to_string();
    assert!(said.contains("holds 2 GGUF files; name one: "), "{said}");
    let other = meant(&run.join("model/b.gguf")).unwrap().local().unwrap();
    assert_eq!(other.identity().unwrap(), identity);
}

/// The file with `from` in its header replaced by as many bytes.
fn patched(file: &Path, from: &[u8], to: &[u8]) -> PathBuf {
    let mut bytes = fs::read(file).unwrap();
    let at = bytes.windows(from.len()).position(|part| part == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    let other = file.with_file_name("patched.gguf");
    fs::write(&other, bytes).unwrap();
    other
}

#[test]
fn what_is_not_done_is_refused_by_its_key() {
    let root = tempfile::tempdir().unwrap();
    let (file, ..) = exported(root.path(), &config(Family::Llama), GgufType::F32);
    // A key or a value of the same length in the place of another.
    for (from, to, says) in [
        ("llama.rope.freq_base", "llama.rope.freq_bass", "llama.rope.freq_bass must be absent"),
        ("llama.block_count", "llama.blocks_here", "llama.block_count is not there"),
        ("llama.vocab_size", "llama.rope_sizes", "llama.rope_sizes must be absent"),
        ("\u{5}\0\0\0\0\0\0\0llama", "\u{5}\0\0\0\0\0\0\0gemma", "found gemma"),
        ("\u{5}\0\0\0\0\0\0\0model", "\u{5}\0\0\0\0\0\0\0lorax", "general.type must be model"),
        ("blk.1.ffn_up.weight", "blk.1.ffn_uq.weight", "missing blk.1.ffn_up.weight; unexpected"),
        ("llama.attention.value_length", "llama.attention.valve_length", "valve_length"),
    ] {
        let said = refused(&patched(&file, from.as_bytes(), to.as_bytes()));
        assert!(said.contains(says) && said.contains("patched.gguf"), "{said}");
    }
    let typed = |of: u32| {
        let dims = [32u64, 307].map(u64::to_le_bytes).concat();
        let to = [&dims[..], &of.to_le_bytes()].concat();
        patched(&file, &[&dims[..], &[0; 4]].concat(), &to)
    };
    let said = refused(&typed(20));
    assert!(said.contains("token_embd.weight must be stored as") && said.contains("20;"), "{said}");
    let divisors = config_with_bands();
    let (file, ..) = exported(root.path(), &divisors, GgufType::F32);
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() - 32; // the last tensor: four divisors
    bytes[at..at + 4].copy_from_slice(&1.5f32.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    assert!(refused(&file).contains("rope_freqs.weight must hold"), "{}", refused(&file));
}

fn config_with_bands() -> Gpt2Config {
    let mut config = config(Family::Llama);
    config.parts.positions = Positions::Rotary(Rotary::new(10000.0, BANDS));
    config
}

#[test]
fn damaged_files_are_errors() {
    let root = tempfile::tempdir().unwrap();
    let (file, ..) = exported(root.path(), &config(Family::Qwen3), GgufType::Q8_0);
    let whole = fs::read(&file).unwrap();
    let other = root.path().join("damaged.gguf");
    let said = |bytes: &[u8]| {
        fs::write(&other, bytes).unwrap();
        refused(&other)
    };
    let header = GgufModel::open(&file).unwrap().values_start() as usize;
    for length in (0..header).step_by(97).chain([header, whole.len() / 2, whole.len() - 40]) {
        let said = said(&whole[..length]);
        assert!(said.contains("cut short") || length == 0, "{length}: {said}");
    }
    // Version 1, a version of tomorrow, big-endian, and lengths beyond the file.
    for (at, bytes, says) in [
        (0, b"GGML".to_vec(), "begins with GGUF"),
        (4, vec![1, 0, 0, 0], "version 2 or 3, found 1"),
        (4, vec![9, 0, 0, 0], "version 2 or 3, found 9"),
        (4, vec![0, 0, 0, 3], "big-endian"),
        (8, vec![255; 8], "damaged.gguf: "),
        (16, vec![255; 8], "damaged.gguf: "),
        (24, vec![255; 8], "damaged.gguf: "),
    ] {
        let mut damaged = whole.clone();
        damaged[at..at + bytes.len()].copy_from_slice(&bytes);
        let said = said(&damaged);
        assert!(said.contains(says), "{says}: {said}");
    }
    // Any byte of the header may hold anything: an error or a model, never a panic.
    for at in (0..header).step_by(13) {
        for byte in [0, 1, 0x7f, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = byte;
            fs::write(&other, damaged).unwrap();
            let _ = GgufModel::open(&other).and_then(|model| model.load(&Device::Cpu));
        }
    }
}
