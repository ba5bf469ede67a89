//! Hugging Face's files of a tokenizer, written so that every reader gives the same ids.

use super::Tokenizer;
use crate::error::{Error, Result};
use crate::files::write_atomic;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What a `tokenizer_config.json` says of the folder that it came from.
const OF_ITS_PLACE: [&str; 9] = [
    "added_tokens_decoder",
    "auto_map",
    "backend",
    "is_local",
    "local_files_only",
    "merges_file",
    "name_or_path",
    "special_tokens_map_file",
    "vocab_file",
];

/// Everything that [`Tokenizer::save`] may write, what a reader asks for first of all.
pub const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
];

impl Tokenizer {
    /// Writes Hugging Face's files into `folder`, each atomically: `tokenizer.json`,
    /// `tokenizer_config.json` and `special_tokens_map.json` with what the source declared, its
    /// chat template, and for GPT-2's scheme `vocab.json`, `merges.txt` and `added_tokens.json`.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let put = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            write_atomic(&path, |w| w.write_all(bytes).map_err(|e| Error::io("write", &path, e)))
        };
        let pretty =
            |v: &Value| serde_json::to_vec_pretty(v).map_err(|e| Error::internal(e.to_string()));
        put("tokenizer.json", &pretty(&self.json)?)?;
        let names = self.special_names();
        put("special_tokens_map.json", &pretty(&Value::Object(names.clone()))?)?;
        put("tokenizer_config.json", &pretty(&self.config(names))?)?;
        if let Some(template) = &self.declared.chat_template {
            put("chat_template.jinja", template.as_bytes())?;
        }
        if let (true, Some(merges)) =
            (self.splits_safely(), self.json["model"]["merges"].as_array())
        {
            let vocab = &self.json["model"]["vocab"];
            put("vocab.json", vocab.to_string().as_bytes())?;
            let mut text = String::from("#version: 0.2\n");
            for pair in merges {
                let [a, b] = [&pair[0], &pair[1]].map(|v| v.as_str().unwrap_or_default());
                text.extend([a, " ", b, "\n"]);
            }
            put("merges.txt", text.as_bytes())?;
            let added = self.json["added_tokens"].as_array().into_iter().flatten();
            let beyond: Map<String, Value> = added
                .filter_map(|t| Some((t["content"].as_str()?.to_string(), t["id"].clone())))
                .filter(|(text, _)| vocab.get(text).is_none())
                .collect();
            if !beyond.is_empty() {
                put("added_tokens.json", &pretty(&Value::Object(beyond))?)?;
            }
        }
        Ok(())
    }

    /// The special tokens by role: those that were declared, and the end of text.
    fn special_names(&self) -> Map<String, Value> {
        let eot = self.end_token();
        let mut names = Map::new();
        for role in super::folder::ROLES {
            if let Some(name) = self.declared.role(role) {
                names.insert(role.into(), name.into());
            }
        }
        // A tokenizer that declares nothing gets GPT-2's roles.
        if names.is_empty() {
            names.insert("bos_token".into(), eot.clone().into());
            names.insert("unk_token".into(), eot.clone().into());
        }
        names.insert("eos_token".into(), eot.into());
        // One list under the name that both versions read; transformers 4 fails at the other's.
        let lists = super::folder::EXTRA.iter().filter_map(|key| self.declared.config.get(*key));
        let mut listed: Vec<Value> = Vec::new();
        for token in lists.filter_map(Value::as_array).flatten() {
            if !listed.contains(token) {
                listed.push(token.clone());
            }
        }
        if !listed.is_empty() {
            names.insert(super::folder::EXTRA[0].into(), listed.into());
        }
        names
    }

    /// `tokenizer_config.json`: what came, the roles, and what keeps ids and texts equal.
    fn config(&self, names: Map<String, Value>) -> Value {
        let mut config = self.declared.config.clone();
        config.retain(|key, _| !OF_ITS_PLACE.contains(&key.as_str()));
        // The one class that takes tokenizer.json as it is: GPT2Tokenizer of transformers 5 makes
        // a pre-tokenizer of its own and drops normalizer and ignore_merges.
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        // transformers 4 sets it in the pre-tokenizer, whatever tokenizer.json says.
        config.remove("add_prefix_space");
        if config.get(super::folder::EXTRA[1]).is_some_and(|v| !v.is_object()) {
            config.remove(super::folder::EXTRA[1]);
        }
        if let Some(space) = self.json["pre_tokenizer"].get("add_prefix_space") {
            config.insert("add_prefix_space".into(), space.clone());
        }
        // Readers in JavaScript take away spaces before punctuation unless told not to.
        config.entry("clean_up_tokenization_spaces").or_insert(json!(false));
        config.extend(names);
        Value::Object(config)
    }
}
