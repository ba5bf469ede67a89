//! Families: `config.json` to parts and back, names and layout of weights.

use super::*;
use crate::model::parts::{
    Activation, Biases, Blocks, Mlp, Positions, QkNorm, Residual, RopeScaling, Rotary, Window,
};
use crate::model::testing::of_other_parts;
use crate::model::{Family, Gpt2};
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
            let neox = config.parts.family == Family::GptNeoX;
            let head = if neox { "embed_out.weight" } else { "lm_head.weight" };
            assert_eq!(stored.tensor(head).is_ok(), own_head);
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
    assert_eq!(
        (qwen3.head_dim(), qwen3.parts.qk_norm, qwen3.parts.biases),
        (128, QkNorm::Head, none)
    );
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
    let plain = |theta| Ok(Rotary::new(theta, RopeScaling::Default));
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
    let scaled = |scaling| Ok(Rotary::new(1e4, scaling));
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
        (r#","head_dim":3"#, "in pairs"),
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
fn windows_are_computed_from_what_each_family_says() {
    let window = |family: &str, more: &str| {
        let read = of(family, &format!(r#","num_key_value_heads":2{more}"#));
        read.map(|config| config.parts.window).map_err(|e| e.to_string())
    };
    let of_16 = |blocks| Ok(Some(Window { size: 16, blocks }));
    let full = r#","layer_types":["full_attention","full_attention"]"#;
    let second = r#","layer_types":["full_attention","sliding_attention"]"#;
    for family in ["qwen2", "qwen3"] {
        let on = |more: &str| {
            window(family, &format!(r#","sliding_window":16,"use_sliding_window":true{more}"#))
        };
        let off = r#","sliding_window":16,"use_sliding_window":false,"max_window_layers":0"#;
        assert_eq!(window(family, off), Ok(None));
        assert_eq!(window(family, r#","sliding_window":16"#), Ok(None));
        assert_eq!(on(""), Ok(None), "from block 28 on");
        assert_eq!(on(r#","max_window_layers":0"#), of_16(Blocks::All));
        assert_eq!(on(r#","max_window_layers":1"#), of_16(Blocks::Of(vec![1])));
        assert_eq!(on(&format!(r#","max_window_layers":0{full}"#)), Ok(None));
        assert_eq!(on(second), of_16(Blocks::Of(vec![1])));
        let null = r#","sliding_window":null,"use_sliding_window":true,"max_window_layers":0"#;
        assert_eq!(window(family, null), Ok(None));
        // As long as the model's 64 positions: none.
        let long = r#","sliding_window":64,"use_sliding_window":true,"max_window_layers":0"#;
        assert_eq!(window(family, long), Ok(None));
        assert!(on(r#","layer_types":["full_attention"]"#).unwrap_err().contains("2 blocks"));
        let chunked = on(r#","layer_types":["full_attention","chunked_attention"]"#).unwrap_err();
        assert!(chunked.contains("chunked_attention"), "{chunked}");
    }
    // Mistral's default is 4,096, and this model's 64 positions are fewer.
    assert_eq!(window("mistral", ""), Ok(None));
    let long = r#""max_position_embeddings":8192"#;
    let default = parse_config(
        format!(r#"{{"model_type":"mistral","num_hidden_layers":1,{long}}}"#).as_bytes(),
    );
    let whole = |size| Some(Window { size, blocks: Blocks::All });
    assert_eq!(default.unwrap().parts.window, whole(4096));
    assert_eq!(window("mistral", r#","sliding_window":16"#), Ok(whole(16)));
    assert_eq!(window("mistral", r#","sliding_window":null"#), Ok(None));
    assert!(window("mistral", r#","sliding_window":0"#).unwrap_err().contains("sliding_window"));
    assert!(window("mistral", second).unwrap_err().contains("layer_types"));
    // SmolLM3's stands in the blocks that are not rotated.
    let marked = r#","sliding_window":16,"use_sliding_window":true,"no_rope_layers":[1,0]"#;
    assert_eq!(window("smollm3", marked), of_16(Blocks::Of(vec![1])));
    assert_eq!(window("smollm3", &format!("{marked}{full}")), Ok(None));
    assert_eq!(window("smollm3", r#","sliding_window":16"#), Ok(None));
    // What is written says the same to a reader of layer_types and to one of max_window_layers.
    let config = of(
        "qwen2",
        &format!(
            r#","num_key_value_heads":2,"sliding_window":16,"use_sliding_window":true{second}"#
        ),
    );
    let written = family::write(&config.unwrap(), &SpecialIds::default());
    assert_eq!(written["layer_types"], serde_json::json!(["full_attention", "sliding_attention"]));
    assert_eq!(
        (&written["max_window_layers"], &written["sliding_window"]),
        (&1.into(), &16.into())
    );
    // Mistral's absent key would be 4,096.
    let none = family::write(
        &of("mistral", r#","num_key_value_heads":2"#).unwrap(),
        &SpecialIds::default(),
    );
    assert!(
        none.as_object().unwrap().contains_key("sliding_window")
            && none["sliding_window"].is_null()
    );
}

#[test]
fn smollm3_marks_rotated_blocks_with_one() {
    let without = |more: &str| {
        let read = of("smollm3", &format!(r#","num_key_value_heads":2{more}"#));
        read.map_err(|e| e.to_string()).map(|config| match config.parts.positions {
            Positions::Rotary(rotary) => rotary.without,
            Positions::Learned => panic!("learned"),
        })
    };
    assert_eq!(without(""), Ok(Blocks::default()), "every fourth of two blocks");
    assert_eq!(without(r#","no_rope_layer_interval":2"#), Ok(Blocks::Of(vec![1])));
    assert_eq!(without(r#","no_rope_layer_interval":1"#), Ok(Blocks::All));
    assert_eq!(without(r#","no_rope_layers":[0,1]"#), Ok(Blocks::Of(vec![0])));
    assert_eq!(without(r#","no_rope_layers":[true,false,true]"#), Ok(Blocks::Of(vec![1])));
    for (more, part) in [
        (r#","no_rope_layers":[]"#, "2 blocks"),
        (r#","no_rope_layers":[1,"a"]"#, "0 and 1"),
        (r#","no_rope_layer_interval":0"#, "at least 1"),
    ] {
        let error = without(more).unwrap_err();
        assert!(error.contains(part), "{more}: {error}");
    }
    let config = of("smollm3", "").unwrap();
    let Positions::Rotary(rotary) = &config.parts.positions else { panic!("learned") };
    assert_eq!((rotary.theta, config.parts.own_head, config.kv_heads()), (2e6, false, 4));
    let written = family::write(&config, &SpecialIds::default());
    assert_eq!(written["no_rope_layers"], serde_json::json!([1, 1]));
}

#[test]
fn gpt_neox_reads_its_own_names_of_rotary_keys() {
    let rotary = |more: &str| match of("gpt_neox", more).map(|config| config.parts.positions) {
        Ok(Positions::Rotary(rotary)) => Ok((rotary.theta, rotary.share)),
        Ok(Positions::Learned) => panic!("learned"),
        Err(e) => Err(e.to_string()),
    };
    assert_eq!(rotary(""), Ok((1e4, 0.25)));
    assert_eq!(rotary(r#","rotary_emb_base":25000,"rotary_pct":1"#), Ok((25000.0, 1.0)));
    // transformers does not read the others' names here.
    assert_eq!(rotary(r#","rope_theta":5,"partial_rotary_factor":1"#), Ok((1e4, 0.25)));
    let table = r#","rope_parameters":{"rope_theta":777,"partial_rotary_factor":0.5}"#;
    assert_eq!(
        rotary(&format!(r#"{table},"rotary_pct":1,"rotary_emb_base":99"#)),
        Ok((777.0, 0.5))
    );
    assert!(rotary(r#","head_dim":4"#).unwrap_err().contains("head_dim"));
    assert!(rotary(r#","rotary_pct":1.5"#).unwrap_err().contains("between 0 and 1"));
    let config = of("gpt_neox", r#","rotary_emb_base":25000,"rotary_pct":0.5"#).unwrap();
    let written = family::write(&config, &SpecialIds::default());
    assert_eq!(
        (&written["rotary_emb_base"], &written["rotary_pct"]),
        (&25000.0.into(), &0.5.into())
    );
    let table = serde_json::json!({"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5});
    assert_eq!(written["rope_parameters"], table);
    let of_residual = |more: &str| of("gpt_neox", more).unwrap().parts.residual;
    assert_eq!(of_residual(""), Residual::Parallel);
    assert_eq!(of_residual(r#","use_parallel_residual":false"#), Residual::PreNorm);
}

#[test]
fn gpt_neox_stores_queries_keys_and_values_head_by_head() {
    let Gpt2 { mut config, .. } = of_other_parts(DType::F32).swap_remove(7);
    config.parts.own_head = true;
    let model = Gpt2::scratch(config, 1, &Device::Cpu).unwrap();
    let dir = tempfile::tempdir().unwrap();
    save_model(dir.path(), &model.config, &model.params, &SaveOptions::default()).unwrap();
    let path = dir.path().join(WEIGHTS_FILE);
    let stored = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let (weight, ours) = (
        &stored["gpt_neox.layers.1.attention.query_key_value.weight"],
        model.params.block(1).attn_w,
    );
    // Three heads of width 5: row (head 1, key, 2) is our column 15 + 5 + 2.
    let row =
        weight.narrow(0, 15 + 5 + 2, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let column =
        ours.narrow(1, 15 + 5 + 2, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(row, column);
    // (head 2, query, 0) is stored at 2 * 15 and our column 10.
    let bias = stored["gpt_neox.layers.1.attention.query_key_value.bias"].to_vec1::<f32>().unwrap();
    let our_bias = model.params.block(1).attn_b.unwrap().to_vec1::<f32>().unwrap();
    assert_eq!((bias[30], bias[5]), (our_bias[10], our_bias[15]));
    // The head under the name of the module, as other writers have it.
    let mut renamed = stored.clone();
    let head = renamed.remove("embed_out.weight").unwrap();
    renamed.insert("lm_head.weight".into(), head.clone());
    candle_core::safetensors::save(&renamed, &path).unwrap();
    let read = load_model(dir.path(), &Device::Cpu).unwrap();
    assert_eq!(bits(&read.1), bits(&model.params));
    renamed.insert("embed_out.weight".into(), head);
    candle_core::safetensors::save(&renamed, &path).unwrap();
    let error = load_model(dir.path(), &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("twice"), "{error}");
}

#[test]
fn a_students_blocks_keep_what_they_have_of_their_own() {
    let [qwen2, smollm3] = [1, 6].map(|i| of_other_parts(DType::F32).swap_remove(i).config);
    let windows = qwen2.of_layers(&[2, 1]).unwrap();
    assert_eq!((windows.window(0), windows.window(1)), (Some(4), None));
    let rotary = smollm3.of_layers(&[1, 0, 1]).unwrap().parts.positions;
    let Positions::Rotary(rotary) = rotary else { panic!("learned") };
    assert_eq!(rotary.without, Blocks::Of(vec![0, 2]));
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
