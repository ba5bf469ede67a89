//! Families: `config.json` to parts and back, names and layout of weights.

use super::*;
use crate::model::parts::{Activation, Biases, Mlp, Positions, RopeScaling, Rotary};
use crate::model::testing::of_other_parts;
use crate::ops::testing::random;

#[test]
fn models_of_every_part_come_back_with_every_bit_and_transformers_names() {
    for (i, model) in of_other_parts(DType::F32).into_iter().enumerate() {
        for own_head in [false, true] {
            let mut config = model.config.clone();
            config.parts.own_head = own_head;
            let layout = Layout::new(&config);
            let tensors: Vec<Tensor> = (layout.entries().iter().enumerate())
                .map(|(j, spec)| random(spec.shape.clone(), j as u32))
                .collect();
            let set = ParamSet::new(layout, tensors);
            let dir = tempfile::tempdir().unwrap();
            let options = SaveOptions { ids: SpecialIds::end_of_text(3), tokenizer: None };
            save_model(dir.path(), &config, &set, &options).unwrap();
            let (read, loaded) = load_model(dir.path(), &Device::Cpu).unwrap();
            assert_eq!(read, config);
            assert_eq!(bits(&loaded), bits(&set));
            let file = fs::read(dir.path().join(WEIGHTS_FILE)).unwrap();
            let stored = safetensors::SafeTensors::deserialize(&file).unwrap();
            assert_eq!(stored.tensor("lm_head.weight").is_ok(), own_head);
            if i < 3 {
                let shape = |name: &str| stored.tensor(name).map(|t| t.shape().to_vec()).ok();
                let (q, kv) = (config.query_width(), config.kv_width());
                let block = "model.layers.2.";
                let at = |name: &str| shape(&format!("{block}{name}"));
                assert_eq!(at("self_attn.q_proj.weight"), Some(vec![q, 15]));
                assert_eq!(at("self_attn.v_proj.weight"), Some(vec![kv, 15]));
                assert_eq!(at("self_attn.o_proj.weight"), Some(vec![15, q]));
                assert_eq!(at("mlp.up_proj.weight"), Some(vec![10, 15]));
                assert_eq!(at("mlp.down_proj.weight"), Some(vec![15, 10]));
                assert_eq!(at("self_attn.k_proj.bias"), (i == 1).then(|| vec![kv]));
                assert_eq!(at("self_attn.q_norm.weight"), (i == 2).then(|| vec![4]));
                assert_eq!(shape("model.norm.weight"), Some(vec![15]));
            }
        }
    }
}

/// A `config.json` of two blocks of width 8 with more keys.
fn of(model_type: &str, more: &str) -> Result<Gpt2Config> {
    parse_config(
        format!(
            r#"{{"model_type":"{model_type}","hidden_size":8,"num_attention_heads":4,"num_hidden_layers":2,
            "intermediate_size":12,"vocab_size":9,"max_position_embeddings":64{more}}}"#
        )
        .as_bytes(),
    )
}

#[test]
fn defaults_of_a_family_count_where_a_key_is_absent() {
    let llama = of("llama", "").unwrap();
    assert_eq!((llama.kv_heads(), llama.head_dim(), llama.parts.own_head), (4, 2, true));
    assert_eq!((llama.layer_norm_epsilon, llama.inner()), (1e-6, 12));
    let none = Biases { qkv: false, output: false, mlp: false };
    assert_eq!(llama.parts.biases, none);
    let all = of("llama", r#","attention_bias":true,"mlp_bias":true"#).unwrap();
    assert_eq!(all.parts.biases, Biases::default());
    // As many as of queries where null says so, the family's number where nothing does.
    let null = r#","num_key_value_heads":null,"head_dim":null"#;
    assert_eq!(
        (of("qwen2", null).unwrap().kv_heads(), of("qwen2", null).unwrap().head_dim()),
        (4, 2)
    );
    assert!(of("qwen2", "").unwrap_err().to_string().contains("4 and 32"));
    let kv = r#","num_key_value_heads":2"#;
    // Qwen2 has biases of queries, keys and values whatever is said.
    let qwen2 = of("qwen2", &format!(r#"{kv},"attention_bias":false"#)).unwrap();
    assert_eq!(qwen2.parts.biases, Biases { qkv: true, ..none });
    let qwen3 = of("qwen3", kv).unwrap();
    assert_eq!((qwen3.head_dim(), qwen3.parts.qk_norm, qwen3.parts.biases), (128, true, none));
    let qwen3 = of("qwen3", &format!(r#"{kv},"attention_bias":true"#)).unwrap();
    assert_eq!(qwen3.parts.biases, Biases { qkv: true, output: true, mlp: false });
    assert!(!of("llama", r#","tie_word_embeddings":true"#).unwrap().parts.own_head);
    for (name, f) in [
        ("silu", Activation::Silu),
        ("gelu", Activation::Gelu),
        ("gelu_pytorch_tanh", Activation::GeluTanh),
        ("relu", Activation::Relu),
    ] {
        let config = of("llama", &format!(r#","hidden_act":"{name}""#)).unwrap();
        assert_eq!(config.parts.mlp, Mlp { activation: f, gated: true });
    }
}

#[test]
fn rotary_keys_are_read_in_either_spelling_and_written_in_both() {
    let rotary = |more: &str| match of("llama", more).map(|config| config.parts.positions) {
        Ok(Positions::Rotary(rotary)) => Ok(rotary),
        Ok(Positions::Learned) => panic!("learned"),
        Err(e) => Err(e.to_string()),
    };
    let plain = |theta| Ok(Rotary { theta, scaling: RopeScaling::Default });
    assert_eq!(rotary(""), plain(1e4));
    assert_eq!(rotary(r#","rope_theta":500000,"rope_scaling":null"#), plain(5e5));
    assert_eq!(
        rotary(r#","rope_parameters":{"rope_type":"default","rope_theta":5e5}"#),
        plain(5e5)
    );
    let both = r#","rope_scaling":{},"rope_theta":7,"rope_parameters":{"rope_theta":5e5}"#;
    assert_eq!(rotary(both), plain(5e5), "an empty table says nothing");
    assert_eq!(
        rotary(r#","rope_theta":3e4,"rope_scaling":{"type":"dynamic","factor":2}"#),
        plain(3e4)
    );
    let scaled = |scaling| Ok(Rotary { theta: 1e4, scaling });
    let linear = RopeScaling::Linear { factor: 4.0 };
    assert_eq!(rotary(r#","rope_scaling":{"type":"linear","factor":4}"#), scaled(linear));
    let bands = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original: 64.0,
    };
    let text = r#","rope_scaling":{"rope_type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4}"#;
    assert_eq!(rotary(text), scaled(bands), "the model's own positions");
    let yarn = |factor, attention, original| {
        let (beta_fast, beta_slow, truncate) = (32.0, 1.0, true);
        scaled(RopeScaling::Yarn { factor, attention, beta_fast, beta_slow, original, truncate })
    };
    let text =
        r#","rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":16}"#;
    assert_eq!(rotary(text), yarn(4.0, 0.1 * 4f64.ln() + 1.0, 16.0));
    let text = r#","rope_scaling":{"rope_type":"yarn","attention_factor":1.5},"original_max_position_embeddings":32"#;
    assert_eq!(rotary(text), yarn(2.0, 1.5, 32.0), "the ratio of the contexts");
    for (text, part) in [
        (r#","rope_scaling":{"rope_type":"longrope","factor":2}"#, "longrope"),
        (r#","rope_scaling":{"rope_type":"linear"}"#, "lacks factor"),
        (r#","partial_rotary_factor":0.5"#, "partial_rotary_factor"),
        (r#","rope_theta":0"#, "theta"),
        (r#","head_dim":3"#, "even"),
    ] {
        let error = rotary(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
    // Both generations of transformers find the base where they look.
    let config = of("llama", r#","rope_theta":123.5"#).unwrap();
    let written = family::write(&config, &SpecialIds::default());
    assert_eq!(written["rope_theta"], 123.5);
    assert_eq!(written["rope_parameters"]["rope_theta"], 123.5);
    assert_eq!(written["rope_scaling"], serde_json::Value::Null);
}

#[test]
fn a_window_shorter_than_the_context_is_refused_with_both_numbers() {
    let kv = r#","num_key_value_heads":2"#;
    let with = |more: &str| of("qwen2", &format!("{kv},{more}"));
    with(r#""sliding_window":16,"use_sliding_window":false"#).unwrap();
    with(r#""sliding_window":16"#).unwrap();
    with(r#""sliding_window":64,"use_sliding_window":true,"max_window_layers":0"#).unwrap();
    with(r#""sliding_window":16,"use_sliding_window":true"#).unwrap(); // from block 28 on
    let full = r#""layer_types":["full_attention","full_attention"],"max_window_layers":0"#;
    with(&format!(r#"{full},"sliding_window":16,"use_sliding_window":true"#)).unwrap();
    let error = with(r#""sliding_window":16,"use_sliding_window":true,"max_window_layers":1"#);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("sliding_window = 16") && error.contains("= 64"), "{error}");
}

#[test]
fn buffers_prefixes_and_heads_of_other_tasks_are_no_parameters() {
    let model = of_other_parts(DType::F32).swap_remove(0);
    let dir = tempfile::tempdir().unwrap();
    save_model(dir.path(), &model.config, &model.params, &SaveOptions::default()).unwrap();
    let file = fs::read(dir.path().join(WEIGHTS_FILE)).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&file).unwrap();
    let all: Raw = (stored.tensors().iter())
        .map(|(name, t)| (name.clone(), t.dtype(), t.shape().to_vec(), t.data().to_vec()))
        .collect();
    let renamed = |f: &dyn Fn(&str) -> String, more: &[(&str, usize)]| -> Raw {
        let own = all.iter().map(|(n, d, s, b)| (f(n), *d, s.clone(), b.clone()));
        let others =
            more.iter().map(|(name, n)| (name.to_string(), Dtype::F32, vec![*n], vec![0; 4 * n]));
        own.chain(others).collect()
    };
    let path = dir.path().join(WEIGHTS_FILE);
    for prefix in ["", "_orig_mod.model.", "module.model."] {
        let bare = |name: &str| name.replace("model.", prefix);
        write(&path, &renamed(&bare, &[("layers.0.self_attn.rotary_emb.inv_freq", 2)]));
        assert_eq!(bits(&load_model(dir.path(), &Device::Cpu).unwrap().1), bits(&model.params));
    }
    write(&path, &renamed(&|n| n.into(), &[("score.weight", 2)]));
    assert_eq!(unused_tensors(dir.path()).unwrap(), ["score.weight"]);
    // A classifier, whose own head is missing.
    let config = dir.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace(r#""tie_word_embeddings": true"#, r#""tie_word_embeddings": false"#),
    )
    .unwrap();
    let error = refused(dir.path());
    assert!(error.contains("lm_head.weight") && error.contains("score.weight"), "{error}");
}
