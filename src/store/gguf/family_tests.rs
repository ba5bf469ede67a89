//! Files of every family, each tensor beside the one that the same model's safetensors hold.

use super::tests::{options, read, run_of, values};
use super::*;
use crate::model::parts::{
    Activation, Biases, Blocks, Mlp, Norm, Positions, QkNorm, Residual, RopeScaling, Rotary, Window,
};
use crate::model::{Family, Parts};
use crate::progress::Silent;
use crate::store::export::{ExportOptions, export};
use candle_core::Tensor;
use std::collections::HashMap;

const ROWS: usize = 307;
const HEADS: usize = 4;
pub(super) const FAMILIES: [Family; 8] = [
    Family::Gpt2,
    Family::Llama,
    Family::Qwen2,
    Family::Qwen3,
    Family::Mistral,
    Family::Olmo2,
    Family::SmolLm3,
    Family::GptNeoX,
];
pub(super) const BANDS: RopeScaling = RopeScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original: 128.0,
};
pub(super) const YARN: RopeScaling = RopeScaling::Yarn {
    factor: 4.0,
    attention: 1.3,
    beta_fast: 32.0,
    beta_slow: 1.0,
    original: 32.0,
    truncate: true,
};

/// A model of a family: 4 blocks, 4 heads of 8 columns, 2 of keys and values where there may be.
pub(super) fn config(family: Family) -> Gpt2Config {
    let none = Biases { qkv: false, output: false, mlp: false };
    let mut rotary = Rotary::new(5e4, RopeScaling::Default);
    let mut parts = Parts {
        family,
        n_kv_head: Some(2),
        norm: Norm::Rms,
        biases: none,
        mlp: Mlp { activation: Activation::Silu, gated: true },
        own_head: true,
        ..Parts::default()
    };
    match family {
        Family::Gpt2 => return Gpt2Config::new(ROWS, 64, 32, 4, HEADS),
        Family::Llama | Family::Mistral => {}
        Family::Qwen2 => parts.biases.qkv = true,
        Family::Qwen3 => {
            parts.qk_norm = QkNorm::Head;
            parts.head_dim = Some(12);
        }
        Family::Olmo2 => {
            parts.qk_norm = QkNorm::Whole;
            parts.residual = Residual::PostNorm;
        }
        Family::SmolLm3 => rotary.without = Blocks::Of(vec![3]),
        Family::GptNeoX => {
            rotary.share = 0.5;
            parts = Parts {
                family,
                residual: Residual::Parallel,
                mlp: Mlp { activation: Activation::Gelu, gated: false },
                own_head: true,
                ..Parts::default()
            };
        }
    }
    parts.positions = Positions::Rotary(rotary);
    Gpt2Config { parts, n_inner: Some(48), ..Gpt2Config::new(ROWS, 64, 32, 4, HEADS) }
}

/// llama.cpp's name of a stored tensor, by the parts of names that families share.
fn renamed(name: &str, post_norm: bool) -> String {
    let body = ["model.", "gpt_neox.", "transformer."].iter().find_map(|p| name.strip_prefix(p));
    let body = body.unwrap_or(name);
    let (block, part) =
        match body.split_once('.').filter(|(first, _)| ["layers", "h"].contains(first)) {
            Some((_, rest)) => {
                let (number, part) = rest.split_once('.').unwrap();
                (format!("blk.{number}."), part)
            }
            None => (String::new(), body),
        };
    let (stem, end) = part.rsplit_once('.').unwrap();
    let part = match stem {
        "embed_tokens" | "embed_in" | "wte" => "token_embd",
        "wpe" => "position_embd",
        "norm" | "final_layer_norm" | "ln_f" => "output_norm",
        "lm_head" | "embed_out" => "output",
        "input_layernorm" | "ln_1" => "attn_norm",
        "post_attention_layernorm" if post_norm => "post_attention_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "post_attention_layernorm" | "ln_2" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "self_attn.o_proj" | "attention.dense" | "attn.c_proj" => "attn_output",
        "attention.query_key_value" | "attn.c_attn" => "attn_qkv",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.dense_h_to_4h" | "mlp.c_fc" => "ffn_up",
        "mlp.down_proj" | "mlp.dense_4h_to_h" | "mlp.c_proj" => "ffn_down",
        other => panic!("{other}"),
    };
    format!("{block}{part}.{end}")
}

/// Which row of the file each row of the stored tensor is.
fn rows(config: &Gpt2Config, name: &str, count: usize) -> Vec<usize> {
    let permuted = ["llama", "smollm3"].contains(&arch::name(config.parts.family));
    let width = config.head_dim();
    let (q, k) = (name.contains(".attn_q."), name.contains(".attn_k."));
    (0..count)
        .map(|row| {
            let (head, i) = (row / width, row % width);
            if permuted && (q || k) {
                // The pair of i and i + width / 2 stands side by side.
                return head * width + 2 * (i % (width / 2)) + i / (width / 2);
            }
            if config.parts.family == Family::GptNeoX && name.contains("attn_qkv") {
                // Stored are [heads, 3, width] rows, the file has [3, heads, width].
                return (head % 3 * HEADS + head / 3) * width + i;
            }
            row
        })
        .collect()
}

fn matrix(tensor: &Tensor) -> Vec<Vec<f32>> {
    let width = if tensor.rank() == 2 { tensor.dims()[1] } else { 1 };
    values(tensor).chunks(width).map(<[f32]>::to_vec).collect()
}

#[test]
fn every_family_has_llama_cpps_names_and_the_rows_of_its_safetensors() {
    for family in FAMILIES {
        let mut config = config(family);
        if family == Family::Llama {
            config.parts.biases = Biases { qkv: true, output: true, mlp: true };
        }
        let root = tempfile::tempdir().unwrap();
        let (source, _) = run_of(root.path(), &config);
        let (file, folder) = (root.path().join("a.gguf"), root.path().join("hf"));
        export(&source, &file, &options(GgufType::F32), &Silent).unwrap();
        export(&source, &folder, &ExportOptions::default(), &Silent).unwrap();
        let stored: HashMap<String, Tensor> =
            candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
        let (content, mut opened) = read(&file);
        assert_eq!(content.tensor_infos.len(), stored.len(), "{family:?}");
        let mut moved = 0;
        for (name, tensor) in &stored {
            let name = renamed(name, family == Family::Olmo2);
            let found = content.tensor(&mut opened, &name, &Device::Cpu).unwrap();
            let found = found.dequantize(&Device::Cpu).unwrap();
            // GPT-2 alone stores matrices the other way round.
            let turned = family == Family::Gpt2 && tensor.rank() == 2 && name.contains("blk.");
            let tensor = if turned { tensor.t().unwrap() } else { tensor.clone() };
            assert_eq!(found.dims(), tensor.dims(), "{family:?} {name}");
            let (found, want) = (matrix(&found), matrix(&tensor));
            for (row, to) in rows(&config, &name, want.len()).into_iter().enumerate() {
                assert_eq!(found[to], want[row], "{family:?} {name}, row {row}");
                moved += usize::from(to != row);
            }
        }
        let moves =
            matches!(family, Family::Llama | Family::Mistral | Family::SmolLm3 | Family::GptNeoX);
        assert_eq!(moved > 0, moves, "{family:?}");
        let of = |key: &str| &content.metadata[&format!("{}.{key}", arch::name(family))];
        assert_eq!(of("attention.head_count").to_u32().unwrap(), 4);
        if config.parts.norm == Norm::Rms {
            assert_eq!(of("attention.head_count_kv").to_u32().unwrap(), 2);
            assert_eq!(of("attention.key_length").to_u32().unwrap() as usize, config.head_dim());
            assert_eq!(of("rope.freq_base").to_f32().unwrap(), 5e4);
            assert_eq!(of("feed_forward_length").to_u32().unwrap(), 48);
        }
        if family == Family::GptNeoX {
            assert_eq!(of("rope.dimension_count").to_u32().unwrap(), 4);
            assert!(of("use_parallel_residual").to_bool().unwrap());
        }
    }
}

#[test]
fn a_tied_head_has_a_tensor_only_where_the_architecture_wants_one() {
    for (family, wanted) in [
        (Family::Llama, false),
        (Family::Gpt2, false),
        (Family::Olmo2, true),
        (Family::GptNeoX, true),
    ] {
        let mut config = config(family);
        config.parts.own_head = false;
        let root = tempfile::tempdir().unwrap();
        let (source, params) = run_of(root.path(), &config);
        let file = root.path().join("a.gguf");
        export(&source, &file, &options(GgufType::F32), &Silent).unwrap();
        let (content, mut opened) = read(&file);
        let head = content.tensor(&mut opened, "output.weight", &Device::Cpu);
        assert_eq!(head.is_ok(), wanted, "{family:?}");
        if let Ok(head) = head {
            assert_eq!(values(&head.dequantize(&Device::Cpu).unwrap()), values(params.wte()));
        }
    }
}

#[test]
fn scaled_rotary_positions_are_keys_or_a_tensor() {
    let scaled = |family, scaling| {
        let mut config = config(family);
        config.parts.positions = Positions::Rotary(Rotary::new(10000.0, scaling));
        config
    };
    // The first wave of 8 columns is short, the last long, the others between (see parts.rs).
    let divisors = arch::frequency_divisors(&scaled(Family::Mistral, BANDS)).unwrap();
    let smooth = (128.0 / (std::f64::consts::TAU / 0.1) - 1.0) / 3.0;
    let between = 1.0 / ((1.0 - smooth) / 8.0 + smooth);
    assert_eq!(divisors, [1.0, between as f32, 8.0, 8.0]);
    let root = tempfile::tempdir().unwrap();
    let (source, _) = run_of(root.path(), &scaled(Family::Llama, BANDS));
    let file = root.path().join("a.gguf");
    export(&source, &file, &options(GgufType::F16), &Silent).unwrap();
    let (content, mut opened) = read(&file);
    let found = content.tensor(&mut opened, "rope_freqs.weight", &Device::Cpu).unwrap();
    assert_eq!(values(&found.dequantize(&Device::Cpu).unwrap()), divisors);

    let keys: HashMap<String, Value> =
        arch::metadata(&scaled(Family::Qwen2, YARN)).into_iter().collect();
    let of = |key: &str| keys[&format!("qwen2.rope.scaling.{key}")].clone();
    assert_eq!(of("type"), Value::Text("yarn".into()));
    assert_eq!(of("factor"), Value::F32(4.0));
    assert_eq!(of("original_context_length"), Value::U32(32));
    // llama.cpp multiplies by 1 + 0.1 ln 4 of its own.
    assert_eq!(of("attn_factor"), Value::F32((1.3 / (1.0 + 0.1 * 4f64.ln())) as f32));
    let linear = arch::metadata(&scaled(Family::Llama, RopeScaling::Linear { factor: 3.0 }));
    assert!(linear.contains(&("llama.rope.scaling.factor".into(), Value::F32(3.0))));
}

#[test]
fn what_llama_cpp_would_compute_otherwise_is_refused_by_its_key() {
    let refused = |family, change: &dyn Fn(&mut Gpt2Config), key: &str| {
        let mut config = config(family);
        change(&mut config);
        let message = arch::check(&config).unwrap_err().to_string();
        let whole =
            message.contains(key) && message.contains("must be") && message.contains("found");
        assert!(whole, "{key}: {message}");
    };
    fn rotary(config: &mut Gpt2Config) -> &mut Rotary {
        match &mut config.parts.positions {
            Positions::Rotary(rotary) => rotary,
            Positions::Learned => panic!(),
        }
    }
    let window = |c: &mut Gpt2Config| {
        c.parts.window = Some(Window { size: 8, blocks: Blocks::All });
    };
    refused(Family::Mistral, &window, "sliding_window");
    refused(Family::Qwen2, &window, "sliding_window");
    let gelu = |c: &mut Gpt2Config| c.parts.mlp.activation = Activation::Gelu;
    refused(Family::Llama, &gelu, "hidden_act must be silu");
    let relu = |c: &mut Gpt2Config| c.parts.mlp.activation = Activation::Relu;
    refused(Family::Gpt2, &relu, "activation_function");
    refused(Family::Gpt2, &|c| c.parts.scores.by_layer = true, "scale_attn_by_inverse_layer_idx");
    refused(Family::Gpt2, &|c| c.parts.scores.by_width = false, "scale_attn_weights");
    for family in [Family::Qwen3, Family::Olmo2, Family::SmolLm3] {
        refused(family, &|c| c.parts.biases.output = true, "attention_bias");
    }
    refused(Family::SmolLm3, &|c| c.parts.biases.mlp = true, "mlp_bias");
    refused(Family::GptNeoX, &|c| c.parts.biases.qkv = false, "attention_bias");
    refused(Family::Qwen2, &|c| c.parts.head_dim = Some(16), "head_dim");
    refused(Family::SmolLm3, &|c| rotary(c).without = Blocks::Of(vec![1, 3]), "no_rope_layers");
    refused(Family::GptNeoX, &|c| rotary(c).share = 0.4, "rotary_pct");
    refused(Family::GptNeoX, &|c| rotary(c).share = 0.0, "rotary_pct");
    refused(Family::Qwen3, &|c| rotary(c).scaling = BANDS, "rope_type");
    let yarn = |change: fn(&mut RopeScaling)| {
        move |c: &mut Gpt2Config| {
            rotary(c).scaling = YARN;
            change(&mut rotary(c).scaling);
        }
    };
    fn of(scaling: &mut RopeScaling) -> (&mut f64, &mut f64, &mut bool) {
        match scaling {
            RopeScaling::Yarn { beta_fast, original, truncate, .. } => {
                (beta_fast, original, truncate)
            }
            _ => panic!(),
        }
    }
    refused(Family::Llama, &yarn(|s| *of(s).0 = 16.0), "beta_fast");
    refused(Family::Llama, &yarn(|s| *of(s).1 = 32.5), "original_max_position_embeddings");
    refused(Family::Llama, &yarn(|s| *of(s).2 = false), "truncate");
    // Computed slightly otherwise, and said.
    assert!(arch::check(&config(Family::GptNeoX)).unwrap().unwrap().contains("exact GELU"));
    assert_eq!(arch::check(&config(Family::Llama)).unwrap(), None);
}
