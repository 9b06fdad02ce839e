//! How near an answer lies to a target by an embedding model. Knows nothing of words.

use super::{Doors, Unable};
use crate::record::ScorerRequest;
use crate::retrieval::cosine;
use crate::sample::{Score, Unscored};
use crate::stage::workflow::embedding;

/// Version of how embeddings are asked for and compared.
pub(super) const REV: u32 = 1;
pub(super) const SOURCE: &str = "cosine similarity of embeddings (Sentence-BERT, Reimers and Gurevych 2019), below zero as zero";

pub(super) struct Semantic;

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
            let Some(value) = cosine(&said, &wanted).map(|value| value.max(0.0)) else {
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
    let request = embedding::request(text.to_owned());
    let (key, completion) = doors.ask(name, &request, made).await?;
    score.requests.push(key);
    Ok(match completion {
        Err((code, detail)) => {
            let refused = Score::none(name, Unscored::JudgeRefused, format!("{code}: {detail}"));
            Err(Score { requests: std::mem::take(&mut score.requests), ..refused })
        }
        Ok(completion) => Ok(embedding::vector(&completion)
            .map_err(|error| Unable::Broken(format!("the scorer `{name}`: {error}")))?),
    })
}
