mod families;

use super::*;
use safetensors::tensor::serialize;
use std::collections::BTreeMap;
use std::fs;

fn small() -> Gpt2Config {
    Gpt2Config::new(11, 5, 8, 2, 2)
}

/// Every element different, exact in bf16 where `coarse`.
fn params(config: &Gpt2Config, coarse: bool) -> ParamSet {
    let layout = Layout::new(config);
    let mut next = 0u32;
    let tensors = layout
        .entries()
        .iter()
        .map(|ParamSpec { shape, .. }| {
            let values: Vec<f32> = (0..shape.iter().product::<usize>())
                .map(|_| {
                    next += 1;
                    if coarse { (next % 128) as f32 / 64.0 - 1.0 } else { (next as f32).sin() }
                })
                .collect();
            Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap()
        })
        .collect();
    ParamSet::new(layout, tensors)
}

fn bits(params: &ParamSet) -> Vec<Vec<u32>> {
    let of = |t: &Tensor| {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
    };
    params.tensors().iter().map(of).collect()
}

/// (name, dtype, shape, bytes)
type Raw = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn raw(params: &ParamSet, prefix: &str, dtype: DType) -> Raw {
    let store = match dtype {
        DType::F64 => Dtype::F64,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        _ => Dtype::F32,
    };
    params
        .named()
        .map(|(name, t)| {
            let mut bytes = Vec::new();
            t.to_dtype(dtype).unwrap().write_bytes(&mut bytes).unwrap();
            (format!("{prefix}{name}"), store, t.dims().to_vec(), bytes)
        })
        .collect()
}

fn write(path: &Path, tensors: &Raw) {
    let views =
        tensors.iter().map(|(n, d, s, b)| (n.clone(), TensorView::new(*d, s.clone(), b).unwrap()));
    fs::write(path, serialize(views, None).unwrap()).unwrap();
}

/// A folder with a good config and the given tensors.
fn folder(config: &Gpt2Config, tensors: &Raw) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let json = serde_json::json!({"model_type": "gpt2", "vocab_size": config.vocab_size, "n_embd": config.n_embd,
        "n_positions": config.n_positions, "n_layer": config.n_layer, "n_head": config.n_head, "harmless": [1]});
    fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    write(&dir.path().join(WEIGHTS_FILE), tensors);
    dir
}

fn refused(dir: &Path) -> String {
    load_model(dir, &Device::Cpu).unwrap_err().to_string()
}

#[test]
fn what_is_saved_is_loaded_bit_for_bit() {
    let (config, params) = (
        Gpt2Config { n_inner: Some(12), ..small() },
        params(&Gpt2Config { n_inner: Some(12), ..small() }, false),
    );
    let dir = tempfile::tempdir().unwrap();
    save_model(
        dir.path(),
        &config,
        &params,
        &SaveOptions { ids: SpecialIds::end_of_text(10), tokenizer: None },
    )
    .unwrap();
    let (read_config, read) = load_model(dir.path(), &Device::Cpu).unwrap();
    assert_eq!(read_config, config);
    assert_eq!(bits(&read), bits(&params));

    let bytes = fs::read(dir.path().join(WEIGHTS_FILE)).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    assert!(header.tensors().contains_key("h.1.mlp.c_proj.bias"));
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join("config.json")).unwrap()).unwrap();
    assert_eq!(
        (json["eos_token_id"].as_u64(), json["architectures"][0].as_str()),
        (Some(10), Some("GPT2LMHeadModel"))
    );

    save_model(dir.path(), &config, &params, &SaveOptions::default()).unwrap();
    assert_eq!(fs::read(dir.path().join(WEIGHTS_FILE)).unwrap(), bytes, "same values, same bytes");
}

#[test]
fn the_file_is_the_reference_writers_byte_for_byte() {
    let params = params(&small(), false);
    let dir = tempfile::tempdir().unwrap();
    save_params(&dir.path().join("p"), &params, &BTreeMap::new()).unwrap();
    write(&dir.path().join("q"), &raw(&params, "", DType::F32));
    assert_eq!(fs::read(dir.path().join("p")).unwrap(), fs::read(dir.path().join("q")).unwrap());
}

#[cfg(unix)]
#[test]
fn files_obey_the_umask_and_tokenizer_files_are_copied() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    let plain = dir.path().join("plain");
    fs::write(&plain, "").unwrap();
    for name in ["vocab.json", "merges.txt"] {
        let path = tokenizer.path().join(name);
        fs::write(&path, name).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let options = SaveOptions { ids: SpecialIds::default(), tokenizer: Some(tokenizer.path()) };
    save_model(dir.path(), &small(), &params(&small(), false), &options).unwrap();
    for name in ["config.json", "generation_config.json", WEIGHTS_FILE, "vocab.json", "merges.txt"]
    {
        assert_eq!(mode(&dir.path().join(name)), mode(&plain), "{name}");
    }
    assert_eq!(fs::read_to_string(dir.path().join("merges.txt")).unwrap(), "merges.txt");
}

#[test]
fn parameter_files_keep_every_bit_and_check_their_list() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("moments.safetensors");
    let mut set = params(&small(), false);
    let mut tensors = set.tensors().to_vec();
    tensors[2] = Tensor::from_vec(
        vec![f32::NAN, -0.0, 1e-45, f32::INFINITY, 1.0, 2.0, 3.0, 4.0],
        8,
        &Device::Cpu,
    )
    .unwrap();
    set = ParamSet::new(set.layout().clone(), tensors);
    let metadata =
        BTreeMap::from([("step".to_string(), "7".to_string()), ("a".to_string(), "b".to_string())]);
    save_params(&path, &set, &metadata).unwrap();
    let read = load_params(&path, set.layout(), &Device::Cpu).unwrap();
    assert_eq!(bits(&read), bits(&set));
    let first = fs::read(&path).unwrap();
    save_params(&path, &set, &metadata).unwrap();
    assert_eq!(fs::read(&path).unwrap(), first);

    let other = Layout::new(&Gpt2Config::new(11, 5, 8, 3, 2));
    let message = load_params(&path, &other, &Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("missing h.2.ln_1.weight"), "{message}");
    write(&path, &raw(&set, "", DType::BF16));
    let message = load_params(&path, set.layout(), &Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("F32") && message.contains("BF16"), "{message}");
}

#[test]
fn a_tensor_that_shares_or_transposes_storage_is_saved_as_its_values() {
    let config = small();
    let set = params(&config, false);
    let mut tensors = set.tensors().to_vec();
    let (rows, columns) = tensors[0].dims2().unwrap();
    let other = tensors[0].t().unwrap().contiguous().unwrap();
    tensors[0] = other.t().unwrap();
    tensors[1] =
        Tensor::cat(&[&tensors[0], &tensors[0]], 0).unwrap().narrow(0, rows - 2, 5).unwrap();
    assert_eq!(tensors[0].dims(), [rows, columns]);
    let set = ParamSet::new(set.layout().clone(), tensors);
    let dir = tempfile::tempdir().unwrap();
    save_params(&dir.path().join("p"), &set, &BTreeMap::new()).unwrap();
    assert_eq!(
        bits(&load_params(&dir.path().join("p"), set.layout(), &Device::Cpu).unwrap()),
        bits(&set)
    );
}

#[test]
fn half_precisions_and_both_namings_load() {
    let config = small();
    let set = params(&config, true);
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        for prefix in ["", "transformer.", "_orig_mod.transformer.", "module.transformer."] {
            let mut tensors = raw(&set, prefix, dtype);
            for l in 0..2 {
                tensors.push((
                    format!("{prefix}h.{l}.attn.bias"),
                    Dtype::U8,
                    vec![1, 1, 5, 5],
                    vec![1; 25],
                ));
                tensors.push((
                    format!("{prefix}h.{l}.attn.masked_bias"),
                    Dtype::F32,
                    vec![],
                    vec![0; 4],
                ));
            }
            let dir = folder(&config, &tensors);
            assert_eq!(
                bits(&load_model(dir.path(), &Device::Cpu).unwrap().1),
                bits(&set),
                "{dtype:?} {prefix}"
            );
        }
    }
}

#[test]
fn a_stored_head_must_be_the_embedding() {
    let config = small();
    let set = params(&config, false);
    let mut tensors = raw(&set, "transformer.", DType::F32);
    let mut head = tensors[0].clone();
    head.0 = "lm_head.weight".into();
    tensors.push(head);
    assert_eq!(
        bits(&load_model(folder(&config, &tensors).path(), &Device::Cpu).unwrap().1),
        bits(&set)
    );
    let alone: Raw = tensors.iter().filter(|t| !t.0.ends_with("wte.weight")).cloned().collect();
    assert_eq!(
        bits(&load_model(folder(&config, &alone).path(), &Device::Cpu).unwrap().1),
        bits(&set),
        "under the head's name alone"
    );
    // A head that is said to be its own is a parameter of its own.
    let untied = folder(&config, &tensors);
    let path = untied.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen('{', r#"{"tie_word_embeddings":false,"#, 1)).unwrap();
    let (own, loaded) = load_model(untied.path(), &Device::Cpu).unwrap();
    assert_eq!(own.parameters(), config.parameters() + config.vocab_size * config.n_embd);
    assert_eq!(loaded.layout().entries().last().unwrap().name, "lm_head.weight");
    tensors.last_mut().unwrap().3[5] ^= 1;
    write(&untied.path().join(WEIGHTS_FILE), &tensors);
    let (_, loaded) = load_model(untied.path(), &Device::Cpu).unwrap();
    assert_ne!(
        loaded.head().to_vec2::<f32>().unwrap(),
        loaded.wte().to_vec2::<f32>().unwrap(),
        "they may differ"
    );
    write(&untied.path().join(WEIGHTS_FILE), &tensors[..tensors.len() - 1].to_vec());
    assert!(refused(untied.path()).contains("no lm_head.weight is stored"));
    let message = refused(folder(&config, &tensors).path());
    assert!(message.contains("differs from the embedding"), "{message}");
}

#[test]
fn shards_load_and_their_index_is_checked() {
    let config = small();
    let set = params(&config, false);
    let tensors = raw(&set, "transformer.", DType::F32);
    let dir = folder(&config, &tensors);
    fs::remove_file(dir.path().join(WEIGHTS_FILE)).unwrap();
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let halves = [tensors[..9].to_vec(), tensors[9..].to_vec()];
    let mut map = serde_json::Map::new();
    for (name, half) in names.iter().zip(&halves) {
        write(&dir.path().join(name), half);
        map.extend(half.iter().map(|t| (t.0.clone(), serde_json::json!(name))));
    }
    let index = |map: &serde_json::Map<String, serde_json::Value>| {
        let json = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
        fs::write(dir.path().join(INDEX_FILE), json.to_string()).unwrap();
    };
    index(&map);
    assert_eq!(bits(&load_model(dir.path(), &Device::Cpu).unwrap().1), bits(&set));

    // What is listed and left away, or lies in another shard, is not missed unless it is needed.
    let mut loose = map.clone();
    loose["transformer.wte.weight"] = names[1].into();
    for name in ["lm_head.weight", "transformer.h.0.attn.bias", "v_head.summary.weight"] {
        loose.insert(name.into(), names[1].into());
    }
    index(&loose);
    assert_eq!(bits(&load_model(dir.path(), &Device::Cpu).unwrap().1), bits(&set));
    // Held twice, and the index says which.
    let mut other = tensors[0].clone();
    other.3[5] ^= 1;
    write(&dir.path().join(names[1]), &[&tensors[9..], &[other][..]].concat());
    index(&map);
    assert_eq!(bits(&load_model(dir.path(), &Device::Cpu).unwrap().1), bits(&set));
    write(&dir.path().join(names[1]), &halves[1]);
    write(&dir.path().join(names[0]), &tensors[1..9].to_vec());
    index(&map);
    let message = refused(dir.path());
    assert!(message.contains(&format!("says that wte.weight is in {}", names[0])), "{message}");
    write(&dir.path().join(names[0]), &halves[0]);
    for bad in [
        "../x.safetensors",
        "/etc/x.safetensors",
        "C:\\x.safetensors",
        "a\nb.safetensors",
        "x.bin",
        "",
    ] {
        let mut wrong = map.clone();
        wrong["transformer.wte.weight"] = bad.into();
        index(&wrong);
        let message = refused(dir.path());
        assert!(message.contains("plain name"), "{bad}: {message}");
    }
    index(&map);
    fs::remove_file(dir.path().join(names[1])).unwrap();
    assert!(refused(dir.path()).contains(names[1]));
}

#[test]
fn heads_of_other_tasks_are_ignored_and_named() {
    let config = small();
    let set = params(&config, false);
    let mut tensors = raw(&set, "transformer.", DType::F32);
    let heads = ["multiple_choice_head.summary.weight", "score.weight", "v_head.summary.bias"];
    for name in heads {
        tensors.push((name.into(), Dtype::F32, vec![1], vec![0; 4]));
    }
    let dir = folder(&config, &tensors);
    assert_eq!(bits(&load_model(dir.path(), &Device::Cpu).unwrap().1), bits(&set));
    assert_eq!(unused_tensors(dir.path()).unwrap(), heads);
}

#[test]
fn missing_extra_misshapen_and_unfinished_tensors_are_named() {
    let config = small();
    let good = raw(&params(&config, false), "", DType::F32);
    let with = |change: &dyn Fn(&mut Raw)| {
        let mut tensors = good.clone();
        change(&mut tensors);
        refused(folder(&config, &tensors).path())
    };
    let message = with(&|t| drop(t.remove(3)));
    assert!(message.contains("missing h.0.ln_1.bias"), "{message}");
    for name in ["h.0.attn.q_norm.weight", "h.2.ln_1.weight", "lm_head.bias"] {
        let message = with(&|t| t.push((name.into(), Dtype::F32, vec![1], vec![0; 4])));
        assert!(message.contains(&format!("unexpected {name}")), "{message}");
    }
    let message = with(&|t| t[4].2 = vec![24, 8]);
    assert!(
        message.contains("h.0.attn.c_attn.weight must have shape [8, 24], found [24, 8]"),
        "{message}"
    );
    let message = with(&|t| (t[2].1, t[2].3) = (Dtype::I64, vec![0; 64]));
    assert!(message.contains("h.0.ln_1.weight is stored as I64"), "{message}");
    for (value, text) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let message = with(&|t| t[5].3[8..12].copy_from_slice(&value.to_le_bytes()));
        assert!(
            message.contains("h.0.attn.c_attn.bias")
                && message.contains(&format!("{text} at flat index 2")),
            "{message}"
        );
    }
    let message =
        with(&|t| t.push(("transformer.wte.weight".into(), Dtype::F32, vec![11, 8], vec![0; 352])));
    assert!(message.contains("wte.weight is stored twice"), "{message}");
}

#[test]
fn damaged_files_and_pickles_are_refused() {
    let config = small();
    let dir = folder(&config, &raw(&params(&config, false), "", DType::F32));
    let path = dir.path().join(WEIGHTS_FILE);
    let bytes = fs::read(&path).unwrap();
    for cut in [0, 7, 100, bytes.len() - 1] {
        fs::write(&path, &bytes[..cut]).unwrap();
        assert!(refused(dir.path()).contains("not a valid safetensors file"), "{cut}");
    }
    fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    assert!(refused(dir.path()).contains("git lfs pull"));
    fs::remove_file(&path).unwrap();
    assert!(refused(dir.path()).contains("found neither"));
    fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    let message = refused(dir.path());
    assert!(message.contains("never read") && message.contains("save_pretrained"), "{message}");
}

#[test]
fn configs_of_other_models_are_refused() {
    let parse = |text: &str| parse_config(text.as_bytes());
    assert_eq!(
        parse(r#"{"model_type":"gpt2"}"#).unwrap(),
        Gpt2Config::new(50257, 1024, 768, 12, 12)
    );
    let generic = r#"{"model_type":"gpt2","hidden_size":48,"n_layer":3,"num_hidden_layers":2,
        "num_attention_heads":3,"max_position_embeddings":32,"vocab_size":11}"#;
    assert_eq!(parse(generic).unwrap(), Gpt2Config::new(11, 32, 48, 2, 3), "the alias wins");
    // The same function under other names, and keys that change nothing, whatever they hold.
    for same in [
        r#""activation_function":"gelu_pytorch_tanh","n_ctx":7,"n_inner":null"#,
        r#""activation_function":"gelu_fast","attn_pdrop":NaN,"x":[Infinity,-Infinity]"#,
        r#""activation_function":"gelu_python_tanh","initializer_range":NaN,"pruned_heads":{}"#,
        r#""activation_function":"gelu_accurate","reorder_and_upcast_attn":true,"use_cache":"x""#,
    ] {
        let config = parse(&format!(r#"{{"model_type":"gpt2",{same}}}"#));
        assert_eq!(config.unwrap(), Gpt2Config::new(50257, 1024, 768, 12, 12), "{same}");
    }
    parse(r#"{"architectures":["GPT2LMHeadModel"],"n_layer":2}"#).unwrap();
    for (text, key) in [
        ("{}", "model_type"),
        (r#"{"model_type":"mamba"}"#, "model_type"),
        (r#"{"model_type":"millrace","auto_map":{"AutoModel":"x.Y"}}"#, "auto_map"),
        (r#"{"model_type":"gpt2","activation_function":"tanh"}"#, "activation_function"),
        (r#"{"model_type":"gpt2","quantization_config":{"bits":4}}"#, "quantization_config"),
        (r#"{"model_type":"gpt2","pruned_heads":{"0":[1]}}"#, "pruned_heads"),
        (r#"{"model_type":"gpt2","layer_norm_epsilon":NaN,"n_head":5}"#, "n_head = 5"),
        (r#"{"model_type":"gpt2","num_attention_heads":"2"}"#, "num_attention_heads"),
        (r#"{"model_type":"gpt2","add_cross_attention":true}"#, "add_cross_attention"),
        (r#"{"model_type":"gpt2","n_head":7}"#, "n_head = 7"),
        (r#"{"model_type":"gpt2","n_embd":-1}"#, "config.json"),
        (r#"{"model_type":"gpt2","n_layer":1e99}"#, "config.json"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.to_string().contains(key), "{text}: {error}");
        assert_eq!(error.kind(), crate::ErrorKind::Data);
    }
    // A hostile layer count must not become a list of names.
    let dir = folder(&small(), &raw(&params(&small(), false), "", DType::F32));
    fs::write(dir.path().join("config.json"), r#"{"model_type":"gpt2","n_layer":16000000}"#)
        .unwrap();
    assert!(refused(dir.path()).contains("n_layer = 16000000"));
}
