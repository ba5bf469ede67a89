//! Files read back with candle's reader, which knows nothing of this writer.

use super::*;
use crate::data::train_tokenizer::tests::trained;
use crate::progress::Silent;
use crate::store::export::{ExportOptions, Format, Vocab, export};
use crate::store::weights::{SaveOptions, SpecialIds, load_model, save_model};
use candle_core::Tensor;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value as Found;
use clap::ValueEnum;
use std::fs;
use std::path::PathBuf;

const TOKENS: usize = 300;

/// A run folder whose model has 7 rows more than its tokenizer has tokens; an MLP of its own width,
/// rows of 32 in all matrices but one, noisy norms and biases.
fn run(root: &Path) -> (PathBuf, Gpt2Config, ParamSet) {
    let config = Gpt2Config { n_inner: Some(48), ..Gpt2Config::new(TOKENS + 7, 8, 32, 2, 4) };
    let (dir, params) = run_of(root, &config);
    (dir, config, params)
}

/// A run folder with a noisy model of this shape and a tokenizer of 300 tokens.
pub(super) fn run_of(root: &Path, config: &Gpt2Config) -> (PathBuf, ParamSet) {
    let layout = crate::model::Layout::new(config);
    let tensors = layout.entries().iter().map(|spec| {
        let values: Vec<f32> =
            (0..spec.elements()).map(|i| (i as f32 * 1.7 + spec.name.len() as f32).sin()).collect();
        Tensor::from_vec(values, spec.shape.as_slice(), &Device::Cpu).unwrap()
    });
    let params = ParamSet::new(layout.clone(), tensors.collect());
    let dir = root.join("run");
    fs::create_dir_all(dir.join("model")).unwrap();
    let eos = vec![TOKENS as u32 - 1, 9];
    let ids = SpecialIds { bos: Some(5), eos, pad: Some(7), ..Default::default() };
    let options = SaveOptions { ids, tokenizer: None };
    save_model(&dir.join("model"), config, &params, &options).unwrap();
    trained(root, TOKENS).0.save(&dir.join("model")).unwrap();
    (dir, params)
}

pub(super) fn options(of: GgufType) -> ExportOptions {
    ExportOptions { format: Format::Gguf(of), ..Default::default() }
}

pub(super) fn read(path: &Path) -> (Content, File) {
    let mut file = File::open(path).unwrap();
    (Content::read(&mut file).unwrap(), file)
}

pub(super) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn each_type_is_read_back_within_its_rounding() {
    let root = tempfile::tempdir().unwrap();
    let (source, config, params) = run(root.path());
    let p = params.block(1);
    let turned = |t: &Tensor| t.t().unwrap().contiguous().unwrap();
    let matrices = [
        ("token_embd.weight", params.wte().clone()),
        ("blk.1.attn_qkv.weight", turned(p.attn_w)),
        ("blk.1.attn_output.weight", turned(p.attn_proj_w)),
        ("blk.1.ffn_up.weight", turned(p.fc_w)),
        ("blk.1.ffn_down.weight", turned(p.proj_w)),
    ];
    let rest = [
        ("position_embd.weight", params.wpe().unwrap()),
        ("output_norm.weight", params.ln_f_w()),
        ("output_norm.bias", params.ln_f_b().unwrap()),
        ("blk.1.attn_norm.weight", p.ln_1_w),
        ("blk.1.attn_norm.bias", p.ln_1_b.unwrap()),
        ("blk.1.ffn_norm.weight", p.ln_2_w),
        ("blk.1.ffn_norm.bias", p.ln_2_b.unwrap()),
        ("blk.1.attn_qkv.bias", p.attn_b.unwrap()),
        ("blk.1.attn_output.bias", p.attn_proj_b.unwrap()),
        ("blk.1.ffn_up.bias", p.fc_b.unwrap()),
        ("blk.1.ffn_down.bias", p.proj_b.unwrap()),
    ];
    for of in GgufType::value_variants().iter().copied() {
        let path = root.path().join(format!("{}.gguf", of.name()));
        let report = export(&source, &path, &options(of), &Silent).unwrap();
        assert_eq!(report.bytes, fs::metadata(&path).unwrap().len());
        assert_eq!((report.parameters, report.tokenizer), (config.parameters(), true));
        let (content, mut file) = read(&path);
        assert_eq!(content.tensor_infos.len(), params.tensors().len(), "the head is tied");
        assert_eq!(content.tensor_data_offset % 32, 0);
        assert!(content.tensor_infos.values().all(|info| info.offset % 32 == 0));
        let mut tensor = |name: &str| content.tensor(&mut file, name, &Device::Cpu).unwrap();
        for (name, want) in &rest {
            let found = tensor(name);
            assert_eq!(found.dtype(), GgmlDType::F32, "{name}");
            let found = found.dequantize(&Device::Cpu).unwrap();
            assert_eq!((found.dims(), values(&found)), (want.dims(), values(want)), "{name}");
        }
        for (name, want) in &matrices {
            let found = tensor(name);
            // Rows of 48 have no whole blocks.
            let (dtype, relative) = match of {
                GgufType::F32 => (GgmlDType::F32, 0.0),
                GgufType::F16 => (GgmlDType::F16, 2f32.powi(-11)),
                GgufType::Bf16 => (GgmlDType::BF16, 2f32.powi(-8)),
                GgufType::Q8_0 if name.contains("down") => (GgmlDType::F16, 2f32.powi(-11)),
                GgufType::Q8_0 => (GgmlDType::Q8_0, 0.0),
            };
            assert_eq!(found.dtype(), dtype, "{name}");
            let found = found.dequantize(&Device::Cpu).unwrap();
            assert_eq!(found.dims(), want.dims(), "{name}");
            let (found, want) = (values(&found), values(want));
            for (found, want) in found.chunks(32).zip(want.chunks(32)) {
                let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                // Half a step, and what rounding the scale to f16 does to 127 of them.
                let block =
                    if dtype == GgmlDType::Q8_0 { largest * (0.51 / 127.0 + 5e-4) } else { 0.0 };
                for (a, b) in found.iter().zip(want) {
                    let allowed = block + relative * b.abs() + f32::from(relative > 0.0) * 1e-7;
                    assert!((a - b).abs() <= allowed, "{name}, {}: {a} for {b}", of.name());
                }
            }
        }
    }
}

#[test]
fn the_metadata_is_what_llama_cpp_asks_for() {
    let root = tempfile::tempdir().unwrap();
    let (source, ..) = run(root.path());
    let path = root.path().join("some.name.gguf");
    export(&source, &path, &options(GgufType::Q8_0), &Silent).unwrap();
    assert_eq!(fs::read(&path).unwrap()[..8], *b"GGUF\x03\0\0\0");
    let metadata = read(&path).0.metadata;
    let number = |key: &str| metadata[key].to_u32().unwrap();
    let text = |key: &str| metadata[key].to_string().unwrap().as_str();
    for (key, want) in [
        ("general.file_type", 7),
        ("general.quantization_version", 2),
        ("gpt2.block_count", 2),
        ("gpt2.context_length", 8),
        ("gpt2.embedding_length", 32),
        ("gpt2.feed_forward_length", 48),
        ("gpt2.attention.head_count", 4),
        ("tokenizer.ggml.bos_token_id", 5),
        ("tokenizer.ggml.eos_token_id", 299),
        ("tokenizer.ggml.padding_token_id", 7),
        ("tokenizer.ggml.unknown_token_id", 299),
    ] {
        assert_eq!(number(key), want, "{key}");
    }
    for (key, want) in [
        ("general.architecture", "gpt2"),
        ("general.type", "model"),
        ("general.name", "some.name"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "gpt-2"),
    ] {
        assert_eq!(text(key), want, "{key}");
    }
    assert_eq!(metadata["gpt2.attention.layer_norm_epsilon"].to_f32().unwrap(), 1e-5);
    assert_eq!(model_name(Path::new("models/my-Phi-3.gguf")), "model");
    for key in ["add_bos_token", "add_space_prefix"] {
        assert!(!metadata[&format!("tokenizer.ggml.{key}")].to_bool().unwrap());
    }

    let tokenizer = Tokenizer::load(&source.join("model")).unwrap();
    let list = |key: &str| metadata[&format!("tokenizer.ggml.{key}")].to_vec().unwrap();
    let texts = |key: &str| -> Vec<String> {
        list(key).iter().map(|v| v.to_string().unwrap().clone()).collect()
    };
    let vocab = tokenizer.json()["model"]["vocab"].as_object().unwrap();
    let tokens = texts("tokens");
    assert_eq!(tokens.len(), TOKENS + 7);
    for (token, id) in vocab {
        assert_eq!(&tokens[id.as_u64().unwrap() as usize], token);
    }
    assert_eq!(tokens[TOKENS - 1..=TOKENS], ["<|endoftext|>", "[PAD300]"]);
    let types: Vec<i32> = list("token_type").iter().map(|v| v.to_i32().unwrap()).collect();
    let kinds = |id: usize| if id < TOKENS - 1 { 1 } else { [3, 5][usize::from(id >= TOKENS)] };
    assert_eq!(types, (0..TOKENS + 7).map(kinds).collect::<Vec<_>>());
    let merges = tokenizer.json()["model"]["merges"].as_array().unwrap();
    let merges: Vec<String> = merges
        .iter()
        .map(|m| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()))
        .collect();
    assert_eq!(texts("merges"), merges);
}

#[test]
fn exactly_the_tokens_have_rows_if_asked() {
    let root = tempfile::tempdir().unwrap();
    let (source, config, params) = run(root.path());
    let exact = |format| ExportOptions { format, vocab: Vocab::Exact };
    let of = Format::Gguf(GgufType::F32);
    let (file, folder) = (root.path().join("a.gguf"), root.path().join("hf"));
    let first = export(&source, &file, &exact(of), &Silent).unwrap();
    let second = export(&source, &folder, &exact(Format::HuggingFace), &Silent).unwrap();
    assert_eq!(first.parameters, config.parameters() - 7 * 32);
    assert_eq!(second.parameters, first.parameters);
    let want = values(&params.wte().narrow(0, 0, TOKENS).unwrap());
    let (cut, stored) = load_model(&folder, &Device::Cpu).unwrap();
    assert_eq!((cut.vocab_size, values(stored.wte())), (TOKENS, want.clone()));
    assert_eq!(values(stored.ln_f_b().unwrap()), values(params.ln_f_b().unwrap()));
    let (content, mut opened) = read(&file);
    let found = content.tensor(&mut opened, "token_embd.weight", &Device::Cpu).unwrap();
    let found = found.dequantize(&Device::Cpu).unwrap();
    assert_eq!((found.dims(), values(&found)), (&[TOKENS, 32][..], want));
    match &content.metadata["tokenizer.ggml.tokens"] {
        Found::Array(tokens) => assert_eq!(tokens.len(), TOKENS),
        other => panic!("{other:?}"),
    }

    // Nobody says how many, or a needed row would go.
    for name in ["model/config.json", "model/generation_config.json"] {
        let config = source.join(name);
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, text.replace("299,\n", "306,\n")).unwrap();
    }
    let message = export(&source, &folder, &exact(of), &Silent).unwrap_err().to_string();
    assert!(message.contains("is a folder"), "{message}");
    let message = export(&source, &file, &exact(of), &Silent).unwrap_err().to_string();
    assert!(message.contains("eos_token_id = 306"), "{message}");
    for name in ["tokenizer.json", "vocab.json"] {
        fs::remove_file(source.join("model").join(name)).unwrap();
    }
    for (format, out) in [(of, &file), (Format::HuggingFace, &folder)] {
        let message = export(&source, out, &exact(format), &Silent).unwrap_err().to_string();
        assert!(message.contains("--vocab exact needs a tokenizer"), "{message}");
    }
}

#[test]
fn refusals_and_failures_leave_what_was_there() {
    let root = tempfile::tempdir().unwrap();
    let (source, config, params) = run(root.path());
    let path = root.path().join("a.gguf");
    let of = options(GgufType::F16);
    let refused = |word: &str| {
        let message = export(&source, &path, &of, &Silent).unwrap_err().to_string();
        assert!(message.contains(word), "{word}: {message}");
    };
    // Replaced is an earlier export, not a file of someone else's.
    for other in [&b"GGUF\x03\0\0\0 of another program"[..], b"text"] {
        fs::write(&path, other).unwrap();
        refused("no GGUF file of an earlier export");
        assert_eq!(fs::read(&path).unwrap(), other);
    }
    fs::remove_file(&path).unwrap();
    export(&source, &path, &of, &Silent).unwrap();
    let first = fs::read(&path).unwrap();
    export(&source, &path, &of, &Silent).unwrap();
    assert_eq!(fs::read(&path).unwrap(), first);

    // A number that f16 has not, behind the first tensors.
    let mut tensors = params.tensors().to_vec();
    let place = params.named().position(|(name, _)| name == "h.1.mlp.c_proj.weight").unwrap();
    tensors[place] = Tensor::full(1e6f32, tensors[place].dims(), &Device::Cpu).unwrap();
    let large = ParamSet::new(params.layout().clone(), tensors);
    let model = source.join("model");
    save_model(&model, &config, &large, &SaveOptions::default()).unwrap();
    refused("tensor blk.1.ffn_down.weight: holds 1000000");

    let file = model.join("tokenizer.json");
    let text = fs::read_to_string(&file).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["pre_tokenizer"]["add_prefix_space"] = true.into();
    fs::write(&file, json.to_string()).unwrap();
    refused("no equal of the tokenizer's pre-tokenizer");
    fs::write(
        &file,
        text.replace("\"<|endoftext|>\": 299", "\"<|endoftext|>\": 400")
            .replace("\"id\": 299", "\"id\": 400"),
    )
    .unwrap();
    refused("401 tokens, its model only 307");
    for name in ["tokenizer.json", "vocab.json"] {
        fs::remove_file(model.join(name)).unwrap();
    }
    refused("a GGUF file holds one");
    assert_eq!(fs::read(&path).unwrap(), first);
    let mut left: Vec<_> =
        fs::read_dir(root.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    left.retain(|name| name.to_string_lossy().contains("gguf"));
    assert_eq!(left, ["a.gguf"]);
}
