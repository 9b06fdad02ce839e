//! How near an answer lies to a target by an embedding model. Knows nothing of words.

use super::{Doors, Unable};
use crate::digest::Replica;
use crate::engine::Resource;
use crate::record::ScorerRequest;
use crate::sample::{Message, Request, ResponseFormat, Role, Sampling, Score, Unscored};
use crate::stage::StageError;

/// Version of how embeddings are asked for and compared.
pub(super) const REV: u32 = 1;
pub(super) const SOURCE: &str = "cosine similarity of embeddings (Sentence-BERT, Reimers and Gurevych 2019), below zero as zero";

pub(super) struct Semantic;

/// Refuses an engine that gives no embeddings.
pub(super) fn check(name: &str, engine: &Resource) -> Result<(), StageError> {
    if engine.backend.embeds() {
        return Ok(());
    }
    Err(StageError::User(format!(
        "the scorer `{name}` needs embeddings, and the engine `{}` gives none: its backend `{}` has no such \
         interface here; name an engine with `backend = \"openai\"` or \"process\" whose server has /embeddings",
        engine.stage,
        engine.backend.name()
    )))
}

impl Semantic {
    pub(super) async fn score(
        &self,
        name: &str,
        doors: &Doors,
        answer: &str,
        targets: &[String],
        made: &mut Vec<ScorerRequest>,
    ) -> Result<Score, Unable> {
        let mut score = Score::new(name);
        let said = match embed(name, doors, answer, made, &mut score).await? {
            Ok(vector) => vector,
            Err(refused) => return Ok(refused),
        };
        let mut best = 0.0;
        for target in targets {
            let wanted = match embed(name, doors, target, made, &mut score).await? {
                Ok(vector) => vector,
                Err(refused) => return Ok(refused),
            };
            let Some(value) = cosine(&said, &wanted) else {
                let detail = format!("the scorer `{name}`: embeddings of different lengths");
                return Err(Unable::Broken(detail));
            };
            if value > best {
                best = value;
                score.matched = Some(target.clone());
            }
        }
        score.value = Some(best);
        Ok(score)
    }
}

/// The embedding of a text, from the store where it is there.
async fn embed(
    name: &str,
    doors: &Doors,
    text: &str,
    made: &mut Vec<ScorerRequest>,
    score: &mut Score,
) -> Result<Result<Vec<f32>, Score>, Unable> {
    let request = Request {
        messages: vec![Message::new(Role::User, text)],
        sampling: Sampling {
            response_format: Some(ResponseFormat::Embedding),
            ..Sampling::default()
        },
        tools: Vec::new(),
        replica: Replica::default(),
    };
    let (key, completion) = doors.ask(name, &request, made).await?;
    score.requests.push(key);
    Ok(match completion {
        Err((code, detail)) => {
            let refused = Score::none(name, Unscored::JudgeRefused, format!("{code}: {detail}"));
            Err(Score { requests: std::mem::take(&mut score.requests), ..refused })
        }
        Ok(completion) => Ok(serde_json::from_str(&completion.text).map_err(|error| {
            Unable::Broken(format!("the scorer `{name}`: what is kept is no embedding: {error}"))
        })?),
    })
}

/// From 0 to 1; `None` of vectors that do not belong together.
fn cosine(a: &[f32], b: &[f32]) -> Option<f64> {
    if a.len() != b.len() || a.is_empty() {
        return None;
    }
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let length = (dot(a, a) * dot(b, b)).sqrt();
    Some(if length > 0.0 { (dot(a, b) / length).clamp(0.0, 1.0) } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines() {
        assert_eq!(cosine(&[1.0, 0.0], &[2.0, 0.0]), Some(1.0));
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 3.0]), Some(0.0));
        assert_eq!(cosine(&[1.0, 0.0], &[-1.0, 0.0]), Some(0.0));
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), Some(0.0));
        assert_eq!(cosine(&[1.0], &[1.0, 0.0]), None);
        assert_eq!(cosine(&[], &[]), None);
    }
}
