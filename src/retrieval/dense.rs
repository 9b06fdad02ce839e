//! Rankings by embeddings, and several rankings made one. Knows nothing of which model made a vector.

use super::Hit;

/// How little a place further down a ranking counts: the constant of Cormack, Clarke and Büttcher (2009), who
/// found it to matter little.
const FUSION_K: f64 = 60.0;

/// The cosine of two vectors, from -1 to 1; 0 where one has no length, and `None` of vectors that do not belong
/// together.
pub fn cosine(a: &[f32], b: &[f32]) -> Option<f64> {
    if a.len() != b.len() || a.is_empty() {
        return None;
    }
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let length = (dot(a, a) * dot(b, b)).sqrt();
    Some(if length > 0.0 { (dot(a, b) / length).clamp(-1.0, 1.0) } else { 0.0 })
}

/// The `most` vectors of a collection that are nearest to a query by their cosine. `vectors` stand one after another,
/// each as long as the query.
pub fn nearest(query: &[f32], vectors: &[f32], most: usize) -> Vec<Hit> {
    let rows = vectors.chunks_exact(query.len().max(1)).enumerate();
    let hits =
        rows.filter_map(|(passage, vector)| Some(Hit { passage, score: cosine(query, vector)? }));
    super::best(hits.collect(), most)
}

/// Reciprocal rank fusion (Cormack, Clarke and Büttcher 2009): a passage gets 1 / (60 + its place) of every ranking that
/// has it, places from 1, whatever the scores in it.
pub fn fuse(rankings: &[Vec<Hit>], most: usize) -> Vec<Hit> {
    let mut hits: Vec<Hit> = Vec::new();
    for ranking in rankings {
        for (place, found) in ranking.iter().enumerate() {
            let score = 1.0 / (FUSION_K + place as f64 + 1.0);
            match hits.iter_mut().find(|hit| hit.passage == found.passage) {
                Some(hit) => hit.score += score,
                None => hits.push(Hit { passage: found.passage, score }),
            }
        }
    }
    super::best(hits, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines() {
        assert_eq!(cosine(&[1.0, 0.0], &[2.0, 0.0]), Some(1.0));
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 3.0]), Some(0.0));
        assert_eq!(cosine(&[1.0, 0.0], &[-1.0, 0.0]), Some(-1.0));
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), Some(0.0));
        assert_eq!(cosine(&[1.0], &[1.0, 0.0]), None);
        assert_eq!(cosine(&[], &[]), None);
    }

    #[test]
    fn the_nearest_come_first() {
        let vectors = [0.0, 1.0, 3.0, 3.0, 5.0, 0.1];
        let found: Vec<_> = nearest(&[1.0, 0.0], &vectors, 2).iter().map(|h| h.passage).collect();
        assert_eq!(found, [2, 1]);
        assert!(nearest(&[], &vectors, 2).is_empty());
    }

    #[test]
    fn places_are_fused_and_not_scores() {
        let ranking = |passages: &[usize]| -> Vec<Hit> {
            passages.iter().map(|passage| Hit { passage: *passage, score: 1e6 }).collect()
        };
        let found = fuse(&[ranking(&[3, 1, 2]), ranking(&[1, 4])], 3);
        let passages: Vec<_> = found.iter().map(|hit| hit.passage).collect();
        assert_eq!(passages, [1, 3, 4]);
        assert!((found[0].score - (1.0 / 62.0 + 1.0 / 61.0)).abs() < 1e-15);
        assert!((found[1].score - 1.0 / 61.0).abs() < 1e-15);
        assert!(fuse(&[], 3).is_empty());
    }
}
