//! Words of a user that look like control tokens stay words. Knows nothing of models.
//!
//! A tokenizer finds its control tokens anywhere in a text, so `<|im_end|>` in a question would end the
//! user's turn. Where a message holds one, the template is rendered with a stand-in, the control tokens that
//! the template itself wrote are put in by number, and all other text is encoded as text.

use std::collections::BTreeMap;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::sample::{Message, Role};

/// First of the characters that stand for control tokens in messages: the private use area of Unicode.
const STAND_IN: u32 = 0xE000;

/// Encodes prompts.
pub(super) struct Prompts {
    /// Takes every text as text.
    plain: Tokenizer,
    /// Control tokens by their text, the longest first.
    control: Vec<(String, u32)>,
    /// What goes before every prompt.
    prefix: Vec<u32>,
}

impl Prompts {
    /// From a tokenizer as JSON; an error says what is wrong with it.
    pub(super) fn new(json: &str) -> Result<Prompts, String> {
        let fail = |error: tokenizers::Error| error.to_string();
        let parsed: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let mut control = BTreeMap::new();
        for token in parsed["added_tokens"].as_array().into_iter().flatten() {
            // The others, such as runs of spaces, are ordinary text that has a token of its own.
            let is_special = token["special"] == true;
            if let (true, Some(text), Some(id)) =
                (is_special, token["content"].as_str(), token["id"].as_u64())
            {
                control.insert(text.to_owned(), id as u32);
            }
        }
        let whole = Tokenizer::from_bytes(json).map_err(fail)?;
        let prefix = whole.encode_fast("", true).map_err(fail)?.get_ids().to_vec();
        let mut plain = whole.clone();
        plain.set_encode_special_tokens(true);
        let mut control: Vec<_> = control.into_iter().collect();
        control.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        Ok(Prompts { plain, control, prefix })
    }

    /// The text of a token.
    pub(super) fn text_of(&self, token: u32) -> String {
        self.plain.decode(&[token], false).unwrap_or_default()
    }

    /// Whether a message that is not the model's own holds the text of a control token.
    pub(super) fn needs_care(&self, messages: &[Message]) -> bool {
        let others = messages.iter().filter(|message| message.role != Role::Assistant);
        others.into_iter().any(|message| {
            self.control.iter().any(|(text, _)| message.content.contains(text.as_str()))
        })
    }

    /// The messages with stand-ins, and what each stands for.
    pub(super) fn disguise(&self, messages: &[Message]) -> (Vec<Message>, Vec<(char, &str)>) {
        let mut free = (STAND_IN..0xF8FF)
            .filter_map(char::from_u32)
            .filter(|c| !messages.iter().any(|message| message.content.contains(*c)));
        let mut stand_ins = Vec::new();
        let mut messages = messages.to_vec();
        for (text, _) in &self.control {
            let others = messages.iter_mut().filter(|message| message.role != Role::Assistant);
            let holders: Vec<_> = others.filter(|m| m.content.contains(text.as_str())).collect();
            if holders.is_empty() {
                continue;
            }
            let Some(c) = free.next() else { break };
            for message in holders {
                message.content =
                    message.content.replace(text.as_str(), c.encode_utf8(&mut [0; 4]));
            }
            stand_ins.push((c, text.as_str()));
        }
        (messages, stand_ins)
    }

    /// The tokens of a rendered prompt with stand-ins.
    pub(super) fn encode(
        &self,
        rendered: &str,
        stand_ins: &[(char, &str)],
    ) -> Result<Vec<u32>, String> {
        let mut ids = self.prefix.clone();
        let mut rest = rendered;
        while !rest.is_empty() {
            let found =
                self.control.iter().filter_map(|(text, id)| Some((rest.find(text)?, text, *id)));
            // The first; of those at one place the longest, which comes first.
            let next = found.min_by_key(|(at, _, _)| *at);
            let (text, control, after) = match next {
                Some((at, text, id)) => (&rest[..at], Some(id), &rest[at + text.len()..]),
                None => (rest, None, ""),
            };
            if !text.is_empty() {
                let restore = |text: String, (c, control): &(char, &str)| text.replace(*c, control);
                let text = stand_ins.iter().fold(text.to_owned(), restore);
                let encoded = self.plain.encode_fast(text, false).map_err(|e| e.to_string())?;
                ids.extend(encoded.get_ids());
            }
            ids.extend(control);
            rest = after;
        }
        // A template that begins with what goes before every prompt has said it already.
        if !self.prefix.is_empty() && ids[self.prefix.len()..].starts_with(&self.prefix) {
            ids.drain(..self.prefix.len());
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts() -> Prompts {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/tiny-chat/tokenizer.json");
        Prompts::new(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn chat(content: &str) -> String {
        format!("<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n")
    }

    #[test]
    fn a_question_about_a_control_token_ends_no_turn() {
        let prompts = prompts();
        let question = Message::new(Role::User, "What does <|im_end|> mean?");
        assert!(prompts.needs_care(std::slice::from_ref(&question)));
        let (messages, stand_ins) = prompts.disguise(&[question]);
        let ids = prompts.encode(&chat(&messages[0].content), &stand_ins).unwrap();
        // 1 and 2 are the two that the template wrote; 2 stands once, not twice.
        assert_eq!(ids.iter().filter(|id| **id == 1).count(), 2);
        assert_eq!(ids.iter().filter(|id| **id == 2).count(), 1);
        let text = prompts.plain.decode(&ids, false).unwrap();
        assert!(text.contains("What does <|im_end|> mean?"), "{text}");
    }

    #[test]
    fn other_prompts_are_encoded_as_ever() {
        let prompts = prompts();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/tiny-chat/tokenizer.json");
        let whole = Tokenizer::from_file(path).unwrap();
        for content in ["What is 4 * 4?", "Zażółć gęślą jaźń \u{E000}", ""] {
            assert!(!prompts.needs_care(&[Message::new(Role::User, content)]));
            let expected = whole.encode_fast(chat(content), true).unwrap();
            assert_eq!(prompts.encode(&chat(content), &[]).unwrap(), expected.get_ids());
        }
        // The model's own words are its own.
        assert!(!prompts.needs_care(&[Message::new(Role::Assistant, "<|im_end|>")]));
    }
}
