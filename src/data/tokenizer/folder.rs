//! A tokenizer's folder, read whole, as transformers 5 reads it: the tokenizer itself, and which of
//! its tokens are special. It lies in up to seven files, some of which say the same.

use super::{gpt2_json, identity, read};
use crate::data::tokens::{END_OF_TEXT, Hash};
use crate::error::{Error, Result};
use crate::files::is_named;
use crate::guard::guarded;
use crate::json;
use serde_json::{Map, Value, json};
use std::path::Path;
use tokenizers::{AddedToken, Encoding, Token};

/// Classes whose pair of `vocab.json` and `merges.txt` means GPT-2's scheme
/// (the last is a word for any).
const GPT2_SCHEME: [&str; 6] =
    ["GPT2", "Roberta", "Bart", "Longformer", "LED", "PreTrainedTokenizer"];
/// Attributes of transformers that name one special token each, in its order.
pub(super) const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Classes that put `bos` before a text, or none, as `add_bos_token` says, whatever template
/// tokenizer.json has, and what counts where it is not said. So does transformers 4; version 5 reads
/// the template alone, but of the last two, where it agrees on what counts unsaid.
const OBEY_ADD_BOS: [(&str, Option<bool>); 5] = [
    ("LlamaTokenizer", None),
    ("GemmaTokenizer", None),
    ("CohereTokenizer", None),
    ("CodeLlamaTokenizer", Some(true)),
    ("GPTNeoXTokenizer", Some(false)),
];
/// What GPT-2's class and Roberta's take where nothing is declared and the token is there.
const GPT2_ROLES: [(&str, &str); 3] =
    [("bos_token", END_OF_TEXT), ("eos_token", END_OF_TEXT), ("unk_token", END_OF_TEXT)];
const ROBERTA_ROLES: [(&str, &str); 7] = [
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("unk_token", "<unk>"),
    ("sep_token", "</s>"),
    ("pad_token", "<pad>"),
    ("cls_token", "<s>"),
    ("mask_token", "<mask>"),
];
/// Where further special tokens are listed; the second is transformers 5's name.
pub(super) const EXTRA: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// What a folder says about its tokenizer, beside the tokenizer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Declared {
    /// `tokenizer_config.json`, as it came, with the special tokens of `special_tokens_map.json`.
    pub config: Map<String, Value>,
    /// `chat_template.jinja`.
    pub chat_template: Option<String>,
    /// Ids of the end marks that the model's `generation_config.json` or `config.json` states.
    pub end_ids: Vec<u32>,
}

impl Declared {
    /// The special token of a role (`eos_token`), if one is declared.
    pub fn role(&self, role: &str) -> Option<String> {
        token(self.config.get(role)?).map(|t| t.content)
    }

    /// Every special token that is declared, by role first.
    fn special(&self) -> Vec<AddedToken> {
        let others = self.config.iter().filter(|(key, value)| {
            // Roles of one model alone: `image_token`.
            key.ends_with("_token") && !ROLES.contains(&key.as_str()) && !value.is_boolean()
        });
        let named = ROLES.iter().filter_map(|role| self.config.get(*role));
        let listed = EXTRA.iter().filter_map(|key| self.config.get(*key)).flat_map(|v| match v {
            Value::Array(list) => list.iter().collect(),
            Value::Object(by_name) => by_name.values().collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        named.chain(others.map(|(_, value)| value)).chain(listed).filter_map(token).collect()
    }
}

/// A special token as configs write it: its text, or an object with its flags.
fn token(value: &Value) -> Option<AddedToken> {
    let content = value.as_str().or_else(|| value["content"].as_str())?;
    let flag = |name: &str| value[name].as_bool().unwrap_or(false);
    let token = AddedToken::from(content, true)
        .lstrip(flag("lstrip"))
        .rstrip(flag("rstrip"))
        .single_word(flag("single_word"))
        .normalized(flag("normalized"));
    (!content.is_empty()).then_some(token)
}

/// A tokenizer and what is said of it.
pub(super) struct Found {
    pub inner: tokenizers::Tokenizer,
    /// The tokenizer as JSON, in the `tokenizers` crate's own order and defaults.
    pub json: Value,
    /// The hash that earlier versions gave it, which read the file of the tokenizer alone.
    pub earlier: Hash,
    pub declared: Declared,
}

impl Found {
    /// What lies at `path`: a folder, or a `tokenizer.json` by itself.
    pub fn at(path: &Path) -> Result<Self> {
        match path.is_dir() {
            true => load(path),
            false => Self::in_json(&read(path)?).map_err(|e| e.context(path.display())),
        }
    }

    /// A `tokenizer.json` by itself, without what would make data depend on chance or length:
    /// dropout of merges, truncation, padding.
    pub fn in_json(bytes: &[u8]) -> Result<Self> {
        let mut inner = parse(bytes)?;
        let mut json = to_json(&inner)?;
        let earlier = identity::hash_as_it_stands(&json);
        if !json["model"]["dropout"].is_null() {
            json["model"]["dropout"] = Value::Null;
            inner = parse(json.to_string().as_bytes())?;
        }
        Ok(Self { inner, json, earlier, declared: Declared::default() })
    }

    /// Says in the post-processor, the one place that both versions of transformers read, that a text
    /// begins with `bos`: some classes are told so by their config alone.
    fn begin_with(&mut self, bos: Option<String>) -> Result<()> {
        let Some((id, bos)) = bos.and_then(|bos| Some((self.inner.token_to_id(&bos)?, bos))) else {
            return Ok(());
        };
        if around(&self.inner)?[0] == [id] {
            return Ok(());
        }
        let special = json!({"SpecialToken": {"id": bos, "type_id": 0}});
        let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        self.json["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [special, text("A")],
            "pair": [special, text("A"), special, text("B")],
            "special_tokens": {bos.as_str(): {"id": bos, "ids": [id], "tokens": [bos]}},
        });
        self.inner = parse(self.json.to_string().as_bytes())?;
        Ok(())
    }

    /// Takes away a template that begins a text with a token.
    fn begin_with_nothing(&mut self) -> Result<()> {
        if !around(&self.inner)?[0].is_empty() {
            self.json["post_processor"] = Value::Null;
            self.inner = parse(self.json.to_string().as_bytes())?;
        }
        Ok(())
    }

    /// Adds tokens: those that are `written` out with their flags, which count, and `others`, of
    /// which one that is there stays as it is.
    fn add(&mut self, written: Vec<AddedToken>, others: Vec<AddedToken>) -> Result<()> {
        let there = self.json["added_tokens"].as_array().into_iter().flatten();
        let mut known: Vec<String> =
            there.filter_map(|t| t["content"].as_str()).map(String::from).collect();
        known.extend(written.iter().map(|t| t.content.clone()));
        let mut new = written;
        for token in others {
            if !known.contains(&token.content) {
                known.push(token.content.clone());
                new.push(token);
            }
        }
        if !new.is_empty() {
            let failed = |e| Error::data(format!("its added tokens do not fit: {e}"));
            self.inner.add_tokens(new).map_err(failed)?;
            self.json = to_json(&self.inner)?;
        }
        Ok(())
    }
}

/// A tokenizer as the crate reads it, without truncation and padding.
fn parse(bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    let failed =
        |e: &dyn std::fmt::Display| Error::data(format!("not a valid tokenizer.json: {e}"));
    let parsed =
        guarded("not a valid tokenizer.json", || tokenizers::Tokenizer::from_bytes(bytes))?;
    let mut inner = parsed.map_err(|e| failed(&e))?;
    inner.with_truncation(None).map_err(|e| failed(&e))?;
    inner.with_padding(None);
    Ok(inner)
}

/// The ids that the template of a tokenizer puts before a text, and after it.
pub(super) fn around(inner: &tokenizers::Tokenizer) -> Result<[Vec<u32>; 2]> {
    /// Stands for a text; no vocabulary has it.
    const TEXT: u32 = u32::MAX;
    let text = Encoding::from_tokens(vec![Token::new(TEXT, "a".into(), (0, 1))], 0);
    let processed =
        guarded("tokenizer: its post_processor", || inner.post_process(text, None, true))?;
    let processed =
        processed.map_err(|e| Error::data(format!("tokenizer: its post_processor: {e}")))?;
    let ids = processed.get_ids();
    let unknown = |id: &&u32| **id != TEXT && inner.id_to_token(**id).is_none();
    if let Some(id) = ids.iter().find(unknown) {
        return Err(Error::data(format!(
            "its post_processor puts token {id} around a text, which the vocabulary does not have; expected one of its tokens"
        )));
    }
    let mut parts = ids.split(|id| *id == TEXT).map(<[u32]>::to_vec);
    Ok([(); 2].map(|()| parts.next().unwrap_or_default()))
}

fn to_json(inner: &tokenizers::Tokenizer) -> Result<Value> {
    let failed = |e: &dyn std::fmt::Display| Error::data(format!("tokenizer: {e}"));
    let json = inner.to_string(false).map_err(|e| failed(&e))?;
    serde_json::from_str(&json).map_err(|e| failed(&e))
}

/// Reads `folder`.
fn load(folder: &Path) -> Result<Found> {
    let mut declared = read_declared(folder)?;
    let class = class(folder, &declared)?;
    let is =
        |names: &[&str]| class.as_deref().is_some_and(|c| names.iter().any(|n| c.starts_with(n)));
    let gpt2 = is(&["GPT2Tokenizer"]);
    if declared.config.get("split_special_tokens") == Some(&json!(true)) {
        return Err(Error::data(format!(
            "{}: tokenizer_config.json says split_special_tokens = true, by which special tokens in a text are spelt out; \
             that is not supported: set it to false",
            folder.display()
        )));
    }
    let file = folder.join("tokenizer.json");
    let mut found = if is_named(&file) {
        Found::in_json(&read(&file)?).map_err(|e| e.context(file.display()))?
    } else {
        from_pair(folder, class.as_deref())?
    };
    let space = json!(declared.config.get("add_prefix_space").is_some_and(|v| *v == json!(true)));
    let first = &mut found.json["pre_tokenizer"];
    if gpt2 && first["type"] == "ByteLevel" && first["add_prefix_space"] != space {
        // The class makes its own pre-tokenizer; the file's does not count.
        first["add_prefix_space"] = space;
        found.inner = parse(found.json.to_string().as_bytes())?;
    }
    let written = written_out(&declared);
    let mut others = match written {
        None => beside(folder, &declared)?,
        Some(_) => Vec::new(),
    };
    let own_roles = if gpt2 || is(&["CodeGenTokenizer", "GPTNeoXTokenizer"]) {
        &GPT2_ROLES[..]
    } else if is(&["Roberta", "Bart", "Longformer", "LED"]) {
        &ROBERTA_ROLES[..]
    } else {
        &[]
    };
    for (role, token) in own_roles {
        // A class's word for a token that nobody has is no declaration.
        let added = written.iter().flatten().chain(&others).any(|t| t.content == *token);
        if added || found.inner.token_to_id(token).is_some() {
            // A mask takes the space before it.
            let flags = json!({"content": token, "lstrip": *role == "mask_token"});
            declared.config.entry(*role).or_insert(flags);
        }
    }
    others.extend(declared.special());
    found.add(written.unwrap_or_default(), others).map_err(|e| e.context(folder.display()))?;
    let unsaid = OBEY_ADD_BOS.iter().find(|(name, _)| is(&[*name])).map(|(_, unsaid)| *unsaid);
    let said = declared.config.get("add_bos_token").and_then(Value::as_bool);
    match unsaid.and_then(|unsaid| said.or(unsaid)) {
        Some(true) => found.begin_with(declared.role("bos_token"))?,
        Some(false) => found.begin_with_nothing()?,
        // GPT-2's class makes a template of its own where there is no tokenizer.json.
        None if gpt2 && !is_named(&file) && said == Some(true) => {
            found.begin_with(declared.role("bos_token"))?;
        }
        None => {}
    }
    Ok(Found { declared, ..found })
}

/// `tokenizer_config.json` and what older folders say in `special_tokens_map.json`, which
/// transformers reads only where the former does not list its added tokens.
fn read_declared(folder: &Path) -> Result<Declared> {
    let mut config = object(folder, "tokenizer_config.json")?.unwrap_or_default();
    if !config.contains_key("added_tokens_decoder") {
        let map = object(folder, "special_tokens_map.json")?.unwrap_or_default();
        config.extend(map.into_iter().filter(|(_, value)| !value.is_null()));
    }
    config.retain(|_, value| !value.is_null());
    let template = folder.join("chat_template.jinja");
    let mut chat_template = match is_named(&template) {
        true => Some(String::from_utf8_lossy(&read(&template)?).into_owned()),
        false => None,
    };
    // Several become the list that both versions read in tokenizer_config.json: one place, one form.
    let mut named = named_templates(&folder.join("additional_chat_templates"))?;
    if !named.is_empty() {
        if let Some(text) = chat_template.take() {
            named.insert(0, json!({"name": "default", "template": text}));
        }
        config.insert("chat_template".into(), named.into());
    }
    Ok(Declared { config, chat_template, end_ids: end_ids(folder)? })
}

/// The templates of a folder of them, by the names of their files.
fn named_templates(folder: &Path) -> Result<Vec<Value>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut files: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "jinja"));
    files.sort();
    let template = |path: &std::path::PathBuf| {
        let text = String::from_utf8_lossy(&read(path)?).into_owned();
        Ok(json!({"name": path.file_stem().map(|n| n.to_string_lossy()), "template": text}))
    };
    files.iter().map(template).collect()
}

/// The ids at which generation ends: `eos_token_id`, a number or a list, of
/// `generation_config.json`, else of `config.json`.
fn end_ids(folder: &Path) -> Result<Vec<u32>> {
    for name in ["generation_config.json", "config.json"] {
        let config = object(folder, name)?.unwrap_or_default();
        let ids = config.get("eos_token_id").map(json::ids).unwrap_or_default();
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    Ok(Vec::new())
}

/// The class that transformers would take: the tokenizer's own word, else that of the model.
fn class(folder: &Path, declared: &Declared) -> Result<Option<String>> {
    let text = |config: &Map<String, Value>, key: &str| {
        config.get(key).and_then(Value::as_str).map(String::from)
    };
    if let Some(class) = text(&declared.config, "tokenizer_class") {
        return Ok(Some(class));
    }
    let config = object(folder, "config.json")?.unwrap_or_default();
    Ok(text(&config, "tokenizer_class").or_else(|| match text(&config, "model_type")?.as_str() {
        "gpt2" => Some("GPT2Tokenizer".into()),
        other => Some(format!("that of model_type {other}")),
    }))
}

/// The JSON object in a file, None if there is no such file.
fn object(folder: &Path, name: &str) -> Result<Option<Map<String, Value>>> {
    let path = folder.join(name);
    if !is_named(&path) {
        return Ok(None);
    }
    match json::parse(&read(&path)?) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => Err(Error::data(format!("{}: expected a JSON object", path.display()))),
        Err(e) => Err(Error::data(format!("{}: not valid JSON: {e}", path.display()))),
    }
}

/// The added tokens that `tokenizer_config.json` writes out with their ids, in the order of ids.
fn written_out(declared: &Declared) -> Option<Vec<AddedToken>> {
    let by_id = declared.config.get("added_tokens_decoder")?.as_object()?;
    let mut tokens: Vec<(u32, AddedToken)> = by_id
        .iter()
        .filter_map(|(id, t)| Some((id.parse().ok()?, token(t)?.special(t["special"] == true))))
        .collect();
    tokens.sort_by_key(|(id, _)| *id);
    Some(tokens.into_iter().map(|(_, token)| token).collect())
}

/// The tokens of `added_tokens.json`, which counts where no other file writes them out.
fn beside(folder: &Path, declared: &Declared) -> Result<Vec<AddedToken>> {
    let special: Vec<String> = declared.special().into_iter().map(|t| t.content).collect();
    let mut added: Vec<(u32, AddedToken)> = object(folder, "added_tokens.json")?
        .unwrap_or_default()
        .iter()
        .filter_map(|(text, at)| {
            let is_special = special.contains(text);
            Some((
                *json::ids(at).first()?,
                AddedToken::from(text.as_str(), is_special).normalized(!is_special),
            ))
        })
        .collect();
    added.sort_by_key(|(id, _)| *id);
    Ok(added.into_iter().map(|(_, token)| token).collect())
}

/// GPT-2's pair `vocab.json` + `merges.txt`.
fn from_pair(folder: &Path, class: Option<&str>) -> Result<Found> {
    let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
    if !(is_named(&vocab) && is_named(&merges)) {
        return Err(Error::data(format!(
            "{}: expected tokenizer.json, or vocab.json and merges.txt; found neither",
            folder.display()
        )));
    }
    if let Some(class) = class.filter(|c| !GPT2_SCHEME.iter().any(|known| c.starts_with(known))) {
        return Err(Error::data(format!(
            "{}: vocab.json and merges.txt of {class} are not GPT-2's scheme; expected tokenizer.json beside them. \
             Python writes it: `AutoTokenizer.from_pretrained({:?}).save_pretrained({:?})`",
            folder.display(),
            folder.display().to_string(),
            folder.display().to_string()
        )));
    }
    let tokens = object(folder, "vocab.json")?.unwrap_or_default();
    let pairs = read_merges(&merges)?;
    // As earlier versions read it, with the one added token that they knew.
    let eot = tokens.get(END_OF_TEXT).and_then(Value::as_u64);
    let json = gpt2_json(&Value::Object(tokens), &json!(pairs), eot);
    Found::in_json(json.to_string().as_bytes()).map_err(|e| e.context(vocab.display()))
}

fn read_merges(path: &Path) -> Result<Vec<[String; 2]>> {
    let bad = |what: String| Error::data(format!("{}: {what}", path.display()));
    let text = String::from_utf8(read(path)?).map_err(|e| bad(format!("not UTF-8: {e}")))?;
    let mut pairs = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.is_empty() || (number == 0 && line.starts_with("#version")) {
            continue;
        }
        match line.split_once(' ') {
            Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => {
                pairs.push([a.to_string(), b.to_string()]);
            }
            _ => {
                let line = format!("line {}: expected two tokens, found {line:?}", number + 1);
                return Err(bad(line));
            }
        }
    }
    Ok(pairs)
}
