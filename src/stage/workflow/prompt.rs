//! What is said before a model's first turn, from the texts of a step, and whether it looks as it should.
//! Knows nothing of replies.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value, json};

use crate::engine::Resource;
use crate::method::Texts;
use crate::sample::{Flow, Message, Role, Step, StepRun, Text};
use crate::template::{self, TemplateError};

/// Marks with which chat formats frame turns and begin texts. In a text that gets its format on the way, one of
/// them stands twice, or breaks the frame.
const MARKS: &[&str] = &[
    "<|im_start|>",
    "<|im_end|>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<s>",
    "</s>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<bos>",
    "<|endoftext|>",
    "<|user|>",
    "<|assistant|>",
    "<|start|>",
    "### Instruction:",
];

/// The texts of a step, those that waited for earlier steps included.
pub(super) fn texts(flow: &Flow, step: &Step, before: &[StepRun]) -> Result<Texts, TemplateError> {
    let text = |text: &Text| match text {
        Text::Ready(text) => Ok(text.clone()),
        Text::Later(source) => {
            let steps: Map<String, Value> = before
                .iter()
                .map(|run| (run.id.clone(), json!({ "output": run.answer })))
                .collect();
            template::render(source, json!({ "row": flow.row, "steps": steps }))
        }
    };
    let messages =
        step.messages.iter().map(|said| Ok(Message::new(said.role, text(&said.content)?)));
    Ok(Texts {
        system: step.system.as_ref().map(text).transpose()?,
        messages: messages.collect::<Result<_, TemplateError>>()?,
        user: text(&step.user)?,
        prefill: step.prefill.as_ref().map(text).transpose()?,
    })
}

/// Says once for a workflow that a prompt holds the marks of a chat format.
pub struct Warnings {
    engine: String,
    is_open: AtomicBool,
    tell: Box<dyn Fn(String) + Send + Sync>,
}

impl Warnings {
    /// For what is sent to an engine.
    pub(super) fn new(engine: &Resource, tell: Box<dyn Fn(String) + Send + Sync>) -> Self {
        let is_open = AtomicBool::new(engine.backend.formats_chat());
        Warnings { engine: engine.stage.clone(), is_open, tell }
    }

    /// Looks at the opening of a conversation.
    pub(super) fn look(&self, flow: &Flow, messages: &[Message]) {
        if !self.is_open.load(Ordering::Relaxed) {
            return;
        }
        let Some((role, mark)) = marked(messages) else { return };
        // The first who finds one tells.
        if self.is_open.swap(false, Ordering::Relaxed) {
            let role = match role {
                Role::System => "system",
                Role::User => "user",
                Role::Assistant => "assistant",
                Role::Tool => "tool",
            };
            (self.tell)(format!(
                "the {role} message of `{}` holds `{mark}`, and `{}` puts messages into the chat format of its model: \
                 leave the format to it, or ask with `api = \"completions\"`",
                flow.id, self.engine
            ));
        }
    }
}

/// The first mark, and in whose message it stands.
fn marked(messages: &[Message]) -> Option<(Role, &'static str)> {
    messages.iter().find_map(|message| {
        let mark = MARKS.iter().find(|mark| message.content.contains(**mark))?;
        Some((message.role, *mark))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_chat_formats_are_found() {
        let check = |text: &str, want: Option<&str>| {
            let found =
                marked(&[Message::new(Role::System, "Be brief."), Message::new(Role::User, text)]);
            assert_eq!(found.map(|(_, mark)| mark), want, "{text:?}");
        };
        check("What is 2 + 2?", None);
        check("a < b, x <- y, [INSTALL], List<String>, <small>", None);
        check("<|im_start|>user\nWhat is 2 + 2?<|im_end|>", Some("<|im_start|>"));
        check("<s>[INST] What is 2 + 2? [/INST]", Some("[INST]"));
        check("<|begin_of_text|>What is 2 + 2?", Some("<|begin_of_text|>"));
    }
}
