//! Ways to reason. A method decides and does not do: it says what to ask next and reads what came back.
//! The loop that calls engine, store and tools is in `stage/workflow/sample.rs`, and so a new method is timed,
//! memoized and limited without knowing it.

use crate::digest::{Recipe, Replica};
use crate::sample::{Completion, Finish, Message, Request, Role, Sampling, Shot, Step, ToolSpec};
use crate::tool::Tool;

pub mod answer;
mod cot;
pub mod extract;
mod likelihood;
mod naive;
pub mod react;

/// What a reply means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// The answer.
    Done {
        /// As parsed.
        answer: String,
        /// What was thought before it.
        thought: String,
    },
    /// A tool shall be called, and its observation given back.
    Call {
        /// Name as written by the model; it may be unknown.
        tool: String,
        /// Input as written.
        input: String,
        /// What was thought before it.
        thought: String,
    },
    /// The reply was not in the format; the hint goes back in the place of an observation.
    Again {
        /// What to write instead.
        hint: String,
        /// The reply's thought, or all of it.
        thought: String,
    },
    /// There is no answer in it, and asking again would not help.
    Unparsable {
        /// What was looked for.
        reason: String,
    },
}

/// A way to reason about one question.
pub trait Method: Send + Sync {
    /// Its name in manifests.
    fn name(&self) -> &'static str;

    /// Raised when the same reply would be read otherwise, or other words be sent.
    fn rev(&self) -> u32;

    /// Default instructions, sent as the system message (below that of the flow template).
    fn instructions(&self, tools: &[Box<dyn Tool>]) -> String;

    /// The same where tools are offered in the provider's own form.
    fn instructions_with_calls(&self) -> String {
        self.instructions(&[])
    }

    /// Stop strings of its own.
    fn stop(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether it can call tools.
    fn uses_tools(&self) -> bool {
        false
    }

    /// Whether the model writes anything.
    fn writes(&self) -> bool {
        true
    }

    /// How it writes the assistant's side of a worked example.
    fn show(&self, shot: &Shot) -> String;

    /// Reads a reply.
    fn read(&self, reply: &str) -> Turn;
}

/// Every built-in method. To add one: a file, its `mod` line, its line here.
pub const METHODS: &[&dyn Method] =
    &[&naive::Naive, &cot::Cot, &react::React, &likelihood::Likelihood];

/// The method of a name.
pub fn find(name: &str) -> Option<&'static dyn Method> {
    METHODS.iter().find(|method| method.name() == name).copied()
}

/// The rendered texts of a step.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    /// System prompt of the template.
    pub system: Option<String>,
    /// Messages before the question.
    pub messages: Vec<Message>,
    /// The question.
    pub user: String,
    /// How the reply begins.
    pub prefill: Option<String>,
}

/// The conversation before the model's first turn: instructions, worked examples, earlier messages, question, and
/// what the reply begins with. `before` is the conversation that goes on, if one does.
pub fn open(
    method: &dyn Method,
    instructions: &str,
    step: &Step,
    texts: &Texts,
    before: &[Message],
) -> Vec<Message> {
    let own = 3 + 2 * step.shots.len() + texts.messages.len();
    let mut messages = Vec::with_capacity(before.len() + own);
    messages.extend_from_slice(before);
    if before.is_empty() {
        let system = texts.system.as_deref();
        let parts: Vec<_> =
            system.into_iter().chain([instructions]).filter(|part| !part.is_empty()).collect();
        if !parts.is_empty() {
            messages.push(Message::new(Role::System, parts.join("\n\n")));
        }
    }
    for shot in &step.shots {
        messages.push(Message::new(Role::User, shot.user.clone()));
        messages.push(Message::new(Role::Assistant, method.show(shot)));
    }
    messages.extend(texts.messages.iter().cloned());
    messages.push(Message::new(Role::User, texts.user.as_str()));
    messages
        .extend(texts.prefill.as_ref().map(|text| Message::new(Role::Assistant, text.as_str())));
    messages
}

/// The next request of a conversation. `tools` are those that are offered in the provider's own form.
pub fn ask(
    method: &dyn Method,
    step: &Step,
    sampling: &Sampling,
    transcript: &[Message],
    tools: &[ToolSpec],
    replica: Replica,
) -> Request {
    let mut sampling = sampling.clone();
    if let Some(max_tokens) = step.max_tokens {
        sampling.max_tokens = max_tokens;
    }
    // What a model must not write in a text that holds calls means nothing where calls have their own form.
    let own: &[&str] = if tools.is_empty() { method.stop() } else { &[] };
    let own = own.iter().map(ToString::to_string);
    for stop in step.stop.iter().cloned().chain(own) {
        if !sampling.stop.contains(&stop) {
            sampling.stop.push(stop);
        }
    }
    Request { messages: transcript.to_vec(), sampling, tools: tools.to_vec(), replica }
}

/// Whether a turn says nothing because the reply was cut off: a format that a few more tokens might have
/// completed is truncated, not wrong.
pub fn cut_off(turn: &Turn, completion: &Completion) -> bool {
    completion.finish == Finish::Length && !matches!(turn, Turn::Done { .. } | Turn::Call { .. })
}

/// Adds the method and its tools to a recipe.
pub fn describe(
    method: &dyn Method,
    instructions: &str,
    tools: &[Box<dyn Tool>],
    recipe: Recipe,
) -> Recipe {
    let recipe = recipe
        .field("method", method.name())
        .field("method_rev", method.rev())
        .field("instructions", instructions);
    tools.iter().fold(recipe, |recipe, tool| tool.describe(recipe))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{ObservationFormat, Text, Usage};

    fn step() -> Step {
        Step {
            id: "answer".into(),
            system: None,
            shots: vec![Shot {
                user: "1+1?".into(),
                reasoning: Some("1 + 1 = 2".into()),
                answer: "2".into(),
            }],
            messages: Vec::new(),
            user: Text::Ready("2+2?".into()),
            prefill: None,
            max_tokens: Some(9),
            stop: vec!["###".into()],
            continues: false,
            observation: ObservationFormat::default(),
        }
    }

    #[test]
    fn each_method_writes_examples_in_its_own_format() {
        let shown = |name: &str| find(name).unwrap().show(&step().shots[0]);
        assert_eq!(shown("naive"), "2");
        assert_eq!(shown("cot"), "1 + 1 = 2\nAnswer: 2");
        assert_eq!(shown("react"), "Thought: 1 + 1 = 2\nFinal Answer: 2");
    }

    #[test]
    fn the_opening_holds_instructions_examples_and_question() {
        let texts = Texts {
            system: Some("You know sums.".into()),
            messages: vec![Message::new(Role::User, "Hi."), Message::new(Role::Assistant, "Hi!")],
            user: "2+2?".into(),
            prefill: Some("It is".into()),
        };
        let messages = open(find("naive").unwrap(), "Be brief.", &step(), &texts, &[]);
        let (user, assistant) = (Role::User, Role::Assistant);
        let roles: Vec<_> = messages.iter().map(|message| message.role).collect();
        assert_eq!(roles, [Role::System, user, assistant, user, assistant, user, assistant]);
        assert_eq!(messages[6].content, "It is");
        assert_eq!(messages[0].content, "You know sums.\n\nBe brief.");
    }

    #[test]
    fn a_step_narrows_the_sampling_of_the_workflow() {
        let sampling =
            Sampling { max_tokens: 160, stop: vec!["###".into()], ..Sampling::default() };
        let request = ask(find("react").unwrap(), &step(), &sampling, &[], &[], Replica::default());
        assert_eq!(request.sampling.max_tokens, 9);
        assert_eq!(request.sampling.stop, ["###", "Observation:"]);
    }

    #[test]
    fn a_reply_that_was_cut_off_is_not_wrong_but_truncated() {
        let completion = Completion::new("Step 1:", Finish::Length, Usage::ZERO);
        let cot = find("cot").unwrap();
        assert!(cut_off(&cot.read(&completion.text), &completion));
        assert!(!cut_off(&cot.read("Answer: 4"), &completion));
    }
}
