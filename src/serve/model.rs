//! An engine of the project with another model. Knows nothing of where the id comes from, and trusts it with nothing:
//! what it names lies in the project, or where the engine's own manifest fetches its model from.

use camino::Utf8Path;

use super::known::{Fields, backend_of};
use crate::manifest::inside;

/// Digits of a commit.
const COMMIT: usize = 40;

/// The fields of an engine with the model of an id, or why it takes none of that name.
///
/// - `openai`: any name, for the server decides what it has. What the declared model costs and holds is not said of
///   another one, and is left out; a table of `prices` knows both.
/// - `mistralrs`: a `.gguf` file or a folder with `config.json` in the project; where the engine itself is of the hub,
///   also `<owner>/<name>@<commit>`. The chat template of the declared model is not that of another one, and is left out.
/// - `process` and `scripted`: none, because the command or the list of replies is the model.
pub fn with_model(root: &Utf8Path, engine: &Fields, id: &str) -> Result<Fields, String> {
    let mut fields = engine.clone();
    match backend_of(engine) {
        "openai" => {
            let before = fields.insert("model".to_owned(), id.into());
            if before.is_none_or(|before| before != id) {
                for field in ["price", "context_length", "tokenizer"] {
                    fields.remove(field);
                }
            }
            Ok(fields)
        }
        "mistralrs" => {
            for field in ["model", "hub", "revision", "file", "chat_template"] {
                fields.remove(field);
            }
            // A GGUF file is quantised already.
            if id.ends_with(".gguf") {
                fields.remove("isq");
            }
            let (owner_and_name, commit) = id.rsplit_once('@').unwrap_or((id, ""));
            if engine.contains_key("hub") && is_hub_id(owner_and_name) && is_commit(commit) {
                fields.insert("hub".to_owned(), owner_and_name.into());
                fields.insert("revision".to_owned(), commit.into());
                return Ok(fields);
            }
            if is_model(root, Utf8Path::new(id)) {
                fields.insert("model".to_owned(), id.into());
                return Ok(fields);
            }
            let hub = match engine.contains_key("hub") {
                true => format!(
                    ", or `<owner>/<name>@<commit>` of the hub, the commit with {COMMIT} digits"
                ),
                false => String::new(),
            };
            Err(format!("a `.gguf` file or a folder with `config.json` in the project{hub}"))
        }
        "process" => Err("no other model, because its `command` names the one it has".to_owned()),
        backend => Err(format!("no other model, because its backend is {backend}")),
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == COMMIT && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// `owner/name`, in the letters that the hub allows.
fn is_hub_id(text: &str) -> bool {
    let fits = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(plain)
    };
    text.split_once('/').is_some_and(|(owner, name)| fits(owner) && fits(name))
}

/// Whether a path is that of a model in the project, links followed.
fn is_model(root: &Utf8Path, path: &Utf8Path) -> bool {
    let real = |path: &Utf8Path| path.canonicalize_utf8().ok();
    let Some(root) = real(root) else { return false };
    let Some(found) = inside(path).and_then(|path| real(&root.join(path))) else { return false };
    let is_gguf = found.is_file() && path.extension() == Some("gguf");
    found.starts_with(&root) && (is_gguf || found.join("config.json").is_file())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn fields(value: Value) -> Fields {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_model_is_what_the_engine_can_load() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        let project = root.join("project");
        std::fs::create_dir_all(project.join("models/small")).unwrap();
        for file in ["project/models/a.gguf", "project/models/small/config.json", "out.gguf"] {
            std::fs::write(root.join(file), "{}").unwrap();
        }
        std::os::unix::fs::symlink(root.join("out.gguf"), project.join("link.gguf")).unwrap();
        let local =
            fields(json!({ "model": "m.gguf", "dtype": "f16", "chat_template": "m.jinja" }));
        let of = |engine: &Fields, id: &str| with_model(&project, engine, id);
        for id in ["models/a.gguf", "models/small"] {
            let found = Value::from(of(&local, id).unwrap());
            assert_eq!(found, json!({ "model": id, "dtype": "f16" }));
        }
        let outside = root.join("out.gguf");
        for id in
            ["models", "models/none.gguf", "../out.gguf", "link.gguf", outside.as_str(), "o/n", ""]
        {
            let why = of(&local, id).unwrap_err();
            assert!(why.contains("`.gguf` file") && !why.contains("hub"), "{id}: {why}");
        }
        // What one model costs says nothing of another.
        let priced = json!({ "backend": "openai", "model": "small", "price": { "input": 1 }, "context_length": 9 });
        let priced = fields(priced);
        assert_eq!(of(&priced, "small").unwrap(), priced);
        let found = Value::from(of(&priced, "large").unwrap());
        assert_eq!(found, json!({ "backend": "openai", "model": "large" }));
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let hub = fields(json!({ "hub": "o/m", "revision": "x", "device": "cuda" }));
        let found = Value::from(of(&hub, &format!("o/n-1.5@{commit}")).unwrap());
        assert_eq!(found, json!({ "hub": "o/n-1.5", "revision": commit, "device": "cuda" }));
        let quantised =
            fields(json!({ "hub": "o/m", "revision": "x", "file": "m-Q4.gguf", "isq": "q4k" }));
        let found = Value::from(of(&quantised, "models/a.gguf").unwrap());
        assert_eq!(found, json!({ "model": "models/a.gguf" }));
        for id in ["o/n", "o/n@main", "o/../n@0123456789abcdef0123456789abcdef01234567"] {
            assert!(of(&hub, id).unwrap_err().contains("@<commit>"), "{id}");
        }
        // Only what a manifest fetches from the hub does a client let be fetched.
        assert!(of(&local, &format!("o/n@{commit}")).is_err());
        let command = fields(json!({ "backend": "process", "command": ["x"], "model": "m" }));
        assert!(of(&command, "other").unwrap_err().contains("`command`"));
        let server = fields(json!({ "backend": "openai", "model": "m" }));
        assert_eq!(of(&server, "other").unwrap()["model"], "other");
    }
}
