//! Passages put into another order by a chat model that sees all of them at once, as in RankGPT (Sun et al. 2023).
//! Knows nothing of how they were found.

use super::{Asked, RERANKER};
use crate::digest::Replica;
use crate::engine::{Client, Failure};
use crate::sample::{Message, Request, Role, Sampling};

/// Version of what the model is asked, and of how its reply is read.
pub(super) const REV: u32 = 1;
/// Tokens of a reply: twenty numbers and what stands between them, with room for a word before.
const MAX_TOKENS: u32 = 256;
/// Bytes of the prompt beyond question and passages, and most tokens of a reply.
pub(super) const FRAME: (u64, u64) = (400, MAX_TOKENS as u64);
const SYSTEM: &str = "You order passages by how much they help to answer a question.";

fn request(question: &str, texts: &[&str]) -> Request {
    let list: Vec<String> =
        texts.iter().enumerate().map(|(i, text)| format!("[{}] {text}", i + 1)).collect();
    let user = format!(
        "Question: {question}\n\n{}\n\nReply with the numbers of the {} passages, the most helpful first, and with nothing \
         else, as in: [2] > [1] > [3]",
        list.join("\n\n"),
        texts.len()
    );
    Request {
        messages: vec![Message::new(Role::System, SYSTEM), Message::new(Role::User, user)],
        sampling: Sampling { max_tokens: MAX_TOKENS, ..Sampling::default() },
        tools: Vec::new(),
        // The order of passages is the same for every draw.
        replica: Replica::default(),
    }
}

/// The order in a reply: positions from 0, each once. Those that it does not name come after, in their old order.
fn order(reply: &str, count: usize) -> Vec<usize> {
    let numbers = reply.split(|c: char| !c.is_ascii_digit()).filter_map(|text| text.parse().ok());
    let mut order: Vec<usize> = Vec::new();
    for number in numbers {
        if (1..=count).contains(&number) && !order.contains(&(number - 1)) {
            order.push(number - 1);
        }
    }
    let rest: Vec<usize> = (0..count).filter(|at| !order.contains(at)).collect();
    order.extend(rest);
    order
}

/// The order of some passages. A refusal leaves them as they are: the model that is
/// examined is another one.
pub(super) async fn rerank(
    door: &Client,
    question: &str,
    texts: &[&str],
    asked: &mut Asked,
) -> Result<Vec<usize>, Failure> {
    let answer = asked.ask(RERANKER, door, &request(question, texts)).await?;
    let reply = answer.completion.map_or_else(|_| String::new(), |completion| completion.text);
    asked.keys.push(answer.observed.key);
    Ok(order(&reply, texts.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_whatever_stands_around_them() {
        let check = |reply: &str, want: &[usize]| assert_eq!(order(reply, 3), want, "{reply:?}");
        check("[2] > [3] > [1]", &[1, 2, 0]);
        check("2, 3", &[1, 2, 0]);
        check("The best is [3].", &[2, 0, 1]);
        check("[3] > [3] > [9] > [0] > [1]", &[2, 0, 1]);
        check("none of them", &[0, 1, 2]);
        check("99999999999999999999999 > 2", &[1, 0, 2]);
    }

    #[test]
    fn all_passages_are_shown_with_their_numbers() {
        let empty: usize = request("", &[]).messages.iter().map(|m| m.content.len()).sum();
        assert!(empty as u64 <= FRAME.0, "{empty}");
        let request = request("Where?", &["first", "second"]);
        assert!(
            request.messages[1]
                .content
                .starts_with("Question: Where?\n\n[1] first\n\n[2] second\n\n")
        );
    }
}
