//! The steps of a flow: texts of the template over one row, and worked examples drawn from others. Knows nothing
//! of where rows come from.

use serde_json::Value;

use super::maker::Maker;
use crate::digest::Digest;
use crate::sample::{Message, Role, Said, Shot, Step, Text};
use crate::stage::flow_template::{Draw, StepTemplate};

/// Rows from which worked examples are drawn.
pub(super) struct Pool {
    /// In the order of their content, none twice.
    rows: Vec<(Digest, Value)>,
    seed: i64,
}

impl Pool {
    pub(super) fn new(rows: Vec<Value>, seed: i64) -> Pool {
        let mut rows: Vec<_> = rows.into_iter().map(|row| (Digest::of_json(&row), row)).collect();
        rows.sort_by_key(|(digest, _)| *digest);
        rows.dedup_by_key(|(digest, _)| *digest);
        Pool { rows, seed }
    }

    /// Rows for the examples of `row`, never an equal one. Seed and row decide which, so that neither the order of
    /// rows nor their number changes what one of them is shown.
    fn draw<'a>(&'a self, row: &Value, nth: usize) -> impl Iterator<Item = &'a Value> {
        let own = Digest::of_json(row);
        let mut taken = std::collections::BTreeSet::new();
        let count = self.rows.len();
        let mut tried = 0_u64;
        std::iter::from_fn(move || {
            if taken.len() == count {
                return None;
            }
            let digest = Digest::of_json(&("shots", self.seed, own.to_string(), nth, tried));
            tried += 1;
            let bytes = digest.bytes()[..8].try_into().expect("BUG: a digest has 32 bytes");
            let mut at = (u64::from_le_bytes(bytes) % count as u64) as usize;
            // A place that is taken gives way to the next one.
            while !taken.insert(at) {
                at = (at + 1) % count;
            }
            Some(&self.rows[at])
        })
        .filter(move |(digest, _)| *digest != own)
        .map(|(_, row)| row)
    }
}

impl Maker<'_> {
    /// One step of a flow. `waits` is set where a text waits for an earlier step; `nth` is its place.
    pub(super) fn step(
        &self,
        step: &StepTemplate,
        nth: usize,
        context: &Value,
        trial: &Value,
        waits: &mut bool,
    ) -> Result<Step, String> {
        let mut text = |name: &str, source: &String| -> Result<Text, String> {
            let name = format!("{}.{name}", step.id);
            let text = self.templates.render(&name, trial);
            if self.later.contains(&name) {
                // What an empty output does to a filter says nothing about a real one.
                if let Err(error) = text.as_ref()
                    && error.undefined
                {
                    return Err(self.explain(&name, error, context));
                }
                *waits = true;
                return Ok(Text::Later(source.clone()));
            }
            Ok(Text::Ready(text.map_err(|error| self.explain(&name, &error, context))?))
        };
        let mut system = step.system.as_ref().map(|source| text("system", source)).transpose()?;
        let mut messages = Vec::new();
        for (i, message) in step.messages.iter().enumerate() {
            let content = text(&format!("message{i}"), &message.content)?;
            messages.push(Said { role: message.role, content });
        }
        let mut user = step.user.as_ref().map(|source| text("user", source)).transpose()?;
        let mut prefill =
            step.prefill.as_ref().map(|source| text("prefill", source)).transpose()?;
        if let Some(source) = &step.chat {
            let name = format!("{}.messages", step.id);
            let mut chat = conversation(self.evaluate(&name, source, context)?)
                .map_err(|why| format!("`{name}` of the flow template: {why}"))?;
            if chat.first().is_some_and(|first| first.role == Role::System) {
                let first = chat.remove(0);
                if system.replace(Text::Ready(first.content)).is_some() {
                    return Err(format!("`{name}` has a system message, and so has the template"));
                }
            }
            if user.is_none() {
                if let Some(last) = chat.pop_if(|last| last.role == Role::Assistant)
                    && prefill.replace(Text::Ready(last.content)).is_some()
                {
                    return Err(format!("`{name}` ends with a reply, and there is `prefill` too"));
                }
                let last = chat.pop().filter(|last| last.role == Role::User);
                let last = last.ok_or_else(|| format!("`{name}` holds no question at its end"))?;
                user = Some(Text::Ready(last.content));
            }
            if chat.iter().any(|message| message.role == Role::System) {
                return Err(format!("`{name}` has a system message that is not the first one"));
            }
            let said = |message: Message| Said {
                role: message.role,
                content: Text::Ready(message.content),
            };
            messages.splice(0..0, chat.into_iter().map(said));
        }
        let user = user.expect("BUG: a step without a question passed the template");
        let mut shots = step.shots.clone();
        if let Some(draw) = &step.draw {
            shots.extend(self.draw(step, draw, nth, &user, context)?);
        }
        Ok(Step {
            id: step.id.clone(),
            system,
            shots,
            messages,
            user,
            prefill,
            max_tokens: step.max_tokens,
            stop: step.stop.clone(),
            continues: step.continues,
            observation: step.observation.clone(),
        })
    }

    /// Worked examples from the pool, without rows that ask what the row itself asks.
    fn draw(
        &self,
        step: &StepTemplate,
        draw: &Draw,
        nth: usize,
        user: &Text,
        context: &Value,
    ) -> Result<Vec<Shot>, String> {
        let pool = self.pool.as_ref().ok_or_else(|| {
            format!(
                "step `{}` draws worked examples: add `shots = \"<rows>\"` to the expansion",
                step.id
            )
        })?;
        let mut shots = Vec::new();
        for row in pool.draw(&context["row"], nth) {
            if shots.len() == draw.count as usize {
                break;
            }
            let of = serde_json::json!({ "row": row });
            let text = |name: &str| {
                let name = format!("{}.{name}", step.id);
                let text = self.templates.render(&name, &of);
                text.map_err(|error| {
                    format!("a row of `shots`: {}", self.explain(&name, &error, &of))
                })
            };
            let question = text(if draw.user.is_some() { "draw.user" } else { "user" })?;
            if *user == Text::Ready(question.clone()) {
                continue;
            }
            let reasoning = draw.reasoning.as_ref().map(|_| text("draw.reasoning")).transpose()?;
            shots.push(Shot { user: question, reasoning, answer: text("draw.answer")? });
        }
        if shots.len() < draw.count as usize {
            let (wanted, found) = (draw.count, shots.len());
            return Err(format!(
                "step `{}` draws {wanted} worked examples, and `shots` has {found} that are not the row itself",
                step.id
            ));
        }
        Ok(shots)
    }
}

/// The texts of a step that are templates, by their names.
pub(super) fn texts(step: &StepTemplate) -> impl Iterator<Item = (String, &String)> {
    let draw = step.draw.as_ref();
    let single = [
        ("system", step.system.as_ref()),
        ("user", step.user.as_ref()),
        ("prefill", step.prefill.as_ref()),
        ("draw.user", draw.and_then(|draw| draw.user.as_ref())),
        ("draw.reasoning", draw.and_then(|draw| draw.reasoning.as_ref())),
        ("draw.answer", draw.map(|draw| &draw.answer)),
    ];
    let single = single.into_iter().filter_map(|(name, source)| Some((name.to_owned(), source?)));
    let messages = step.messages.iter().enumerate();
    let messages = messages.map(|(i, message)| (format!("message{i}"), &message.content));
    single.chain(messages).map(|(name, source)| (format!("{}.{name}", step.id), source))
}

/// A list of messages, as data sets and servers write it. Of parts of a message, those of text.
fn conversation(value: Value) -> Result<Vec<Message>, String> {
    let Value::Array(list) = value else {
        return Err(format!("messages are a list, not {value}"));
    };
    let message = |message: &Value| {
        let role = match message["role"].as_str() {
            Some("system") => Role::System,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            _ => {
                return Err(format!(
                    "the role of a message is system, user or assistant: {message}"
                ));
            }
        };
        let content = match &message["content"] {
            Value::String(text) => text.clone(),
            Value::Array(parts) => {
                let texts = parts.iter().map(|part| part["text"].as_str());
                let texts: Option<Vec<&str>> = texts.collect();
                texts
                    .ok_or_else(|| {
                        format!("of the parts of a message only texts are known: {message}")
                    })?
                    .concat()
            }
            _ => return Err(format!("a message has `content`, a text: {message}")),
        };
        Ok(Message::new(role, content))
    };
    list.iter().map(message).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn drawn(pool: &Pool, row: &Value) -> Vec<i64> {
        pool.draw(row, 0).map(|row| row["n"].as_i64().unwrap()).collect()
    }

    fn rows(numbers: impl Iterator<Item = i64>) -> Vec<Value> {
        numbers.map(|n| json!({ "n": n })).collect()
    }

    #[test]
    fn every_row_is_drawn_once_and_never_the_row_itself() {
        let pool = Pool::new(rows(0..20), 7);
        for n in 0..20 {
            let mut found = drawn(&pool, &json!({ "n": n }));
            assert_eq!(found.len(), 19);
            found.sort();
            assert_eq!(found, (0..20).filter(|other| *other != n).collect::<Vec<_>>());
        }
        assert_eq!(drawn(&pool, &json!({ "n": 99 })).len(), 20);
        assert!(drawn(&Pool::new(Vec::new(), 7), &json!({})).is_empty());
    }

    #[test]
    fn seed_and_row_decide_and_nothing_else() {
        let row = json!({ "n": 3 });
        let first = drawn(&Pool::new(rows(0..20), 7), &row);
        // The order of the rows, and rows that stand twice, change nothing.
        let again = drawn(&Pool::new(rows((0..20).rev().chain(0..5)), 7), &row);
        assert_eq!(first, again);
        assert_ne!(first, drawn(&Pool::new(rows(0..20), 8), &row));
        assert_ne!(first[..5], drawn(&Pool::new(rows(0..20), 7), &json!({ "n": 4 }))[..5]);
    }

    #[test]
    fn conversations_are_read_as_servers_write_them() {
        let parts = json!([{ "role": "user", "content": [{ "type": "text", "text": "Hi." }] }]);
        assert_eq!(conversation(parts).unwrap()[0].content, "Hi.");
        let check = |value: Value, part: &str| {
            let error = conversation(value).unwrap_err();
            assert!(error.contains(part), "{error}");
        };
        check(json!("Hi."), "messages are a list");
        check(json!([{ "role": "robot", "content": "Hi." }]), "system, user or assistant");
        check(json!([{ "role": "user" }]), "a message has `content`");
        check(json!([{ "role": "user", "content": [{ "type": "image_url" }] }]), "only texts");
    }
}
