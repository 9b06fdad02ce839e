//! Chat templates that write today's date into every prompt: the same question would be another one tomorrow,
//! under the same key. Such a template gets a date that does not move. Knows nothing of engines.

use std::io::Write;

use camino::Utf8Path;
use serde_json::Value;

use super::{MistralRs, Weights, gguf};

/// What a template calls for the date.
const DATES: &[&str] = &["strftime_now", "date_string"];
/// Before such a template: the date that Llama's own templates fall back to, in their form.
const PRELUDE: &str = "{%- set date_string = \"26 Jul 2024\" -%}\
    {%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}";

/// A copy of the template with a date that does not move; `None` for one without a date.
pub(super) fn without_today(
    settings: &MistralRs,
) -> Result<Option<tempfile::NamedTempFile>, String> {
    let text = match (&settings.chat_template, &settings.weights) {
        (Some(path), _) => Some(read(path)?),
        (None, Weights::Gguf(file)) => {
            gguf::text(file, "tokenizer.chat_template").map_err(|error| error.to_string())?
        }
        (None, Weights::Folder(folder)) => of_folder(folder)?,
    };
    let Some(text) = text.filter(|text| DATES.iter().any(|date| text.contains(date))) else {
        return Ok(None);
    };
    let fail = |error: std::io::Error| format!("cannot write a chat template: {error}");
    let mut file = tempfile::Builder::new().suffix(".jinja").tempfile().map_err(fail)?;
    file.write_all(PRELUDE.as_bytes()).map_err(fail)?;
    file.write_all(text.as_bytes()).map_err(fail)?;
    file.flush().map_err(fail)?;
    Ok(Some(file))
}

fn read(path: &Utf8Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("`{path}`: {error}"))
}

/// The template in a folder: a file of its own comes before the one in the tokenizer's settings.
fn of_folder(folder: &Utf8Path) -> Result<Option<String>, String> {
    let own = folder.join("chat_template.jinja");
    if own.exists() {
        return Ok(Some(read(&own)?));
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let path = folder.join(name);
        if !path.exists() {
            continue;
        }
        let json: Value =
            serde_json::from_str(&read(&path)?).map_err(|error| format!("`{path}`: {error}"))?;
        match &json["chat_template"] {
            Value::String(text) => return Ok(Some(text.clone())),
            // Several by name: the one that chats use.
            Value::Array(all) => {
                let default = all.iter().find(|one| one["name"] == "default").or(all.first());
                let text = default.and_then(|one| one["template"].as_str());
                return Ok(text.map(str::to_owned));
            }
            _ => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_in_a_prompt_does_not_move() {
        let mut env = minijinja::Environment::new();
        // As the engine offers it: today.
        env.add_function("strftime_now", |_: String| "today".to_owned());
        let llama = "{%- if not date_string is defined %}{%- set date_string = strftime_now(\"%d %b %Y\") %}\
            {%- endif %}Today Date: {{ date_string }}";
        let other = "Now: {{ strftime_now('%Y') }}";
        for (template, expected) in
            [(llama, "Today Date: 26 Jul 2024"), (other, "Now: 26 Jul 2024")]
        {
            let text = format!("{PRELUDE}{template}");
            let rendered =
                env.render_str(&text, minijinja::context! { date_string => "today" }).unwrap();
            assert_eq!(rendered, expected);
        }
    }
}
