//! Scorers against people: 400 answers of two systems to 200 questions of TriviaQA, each with a verdict. Where
//! scorer and people disagree stands in `tests/snapshots/`, whole: a change of a scorer shows there.

use llmforge::scorer;
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    id: String,
    question: String,
    targets: Vec<String>,
    answer: String,
    answer_form: String,
    human_correct: bool,
}

fn rows() -> Vec<Row> {
    let text = include_str!("../fixtures/qa_human_verdicts.jsonl");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The share of answers of a form on which a scorer and people agree, and those on which they do not.
fn agreement(form: &str, name: &str, threshold: f64) -> (f64, String) {
    let scorer = scorer::find(name).unwrap();
    let rows: Vec<_> = rows().into_iter().filter(|row| row.answer_form == form).collect();
    assert_eq!(rows.len(), 200);
    let mut list = String::new();
    let mut agreed = 0;
    for row in &rows {
        let value = scorer.score(&row.answer, &row.targets).value.unwrap();
        if (value >= threshold) == row.human_correct {
            agreed += 1;
            continue;
        }
        let people = if row.human_correct { "right" } else { "wrong" };
        let targets: Vec<_> = row.targets.iter().take(3).map(String::as_str).collect();
        let more = row.targets.len().saturating_sub(3);
        list.push_str(&format!(
            "{} ({value:.2}, people: {people})\n  {}\n  answer:  {}\n  targets: {}{}\n",
            row.id,
            row.question.trim(),
            row.answer.trim(),
            targets.join(" | "),
            if more > 0 { format!(" and {more} more") } else { String::new() }
        ));
    }
    (f64::from(agreed) / rows.len() as f64, list)
}

#[test]
fn includes_agrees_with_people_on_long_answers() {
    let (share, list) = agreement("long", "includes", 1.0);
    assert!(share >= 0.90, "{share}");
    insta::assert_snapshot!("includes_and_people", format!("agreement {share:.3}\n\n{list}"));
}

#[test]
fn f1_agrees_with_people_on_short_answers() {
    let (share, list) = agreement("short", "f1", 0.5);
    assert!(share >= 0.94, "{share}");
    insta::assert_snapshot!("f1_and_people", format!("agreement {share:.3}\n\n{list}"));
}
