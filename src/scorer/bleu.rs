//! BLEU of one answer against all its references together. Knows nothing of other answers: the mean over
//! samples is a mean of sentences and not the BLEU of a corpus.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

use super::{Compared, Scorer, Texts};

/// Longest n-gram.
const ORDER: usize = 4;

pub(super) const SCORER: Scorer = Scorer {
    name: "bleu",
    rev: 1,
    source: "sentence BLEU of sacrebleu 2 (Post 2018): 13a tokens, effective order, exponential smoothing; divided by 100",
    compare,
};

fn compare(texts: &Texts<'_>) -> Compared {
    let answer = tokens(texts.answer);
    let references: Vec<_> = texts.targets.iter().map(|target| tokens(target)).collect();
    let value = bleu(&answer, &references);
    // Of several references the n-grams of all count, so no single one gave the value.
    let matched = (value > 0.0 && references.len() == 1).then_some(0);
    Compared { value, matched, parsed: None, detail: None }
}

fn bleu(answer: &[String], references: &[Vec<String>]) -> f64 {
    let (mut correct, mut total) = ([0_usize; ORDER], [0_usize; ORDER]);
    for n in 1..=ORDER {
        let mut wanted: HashMap<&[String], usize> = HashMap::new();
        for reference in references {
            for (gram, count) in counts(reference, n) {
                let most = wanted.entry(gram).or_default();
                *most = count.max(*most);
            }
        }
        for (gram, count) in counts(answer, n) {
            total[n - 1] += count;
            correct[n - 1] += count.min(wanted.get(gram).copied().unwrap_or(0));
        }
    }
    if correct.iter().all(|count| *count == 0) {
        return 0.0;
    }
    let said = answer.len();
    let closest = references.iter().map(Vec::len).min_by_key(|len| (len.abs_diff(said), *len));
    let (mut halvings, mut logs, mut order) = (1.0, 0.0, 0);
    for (correct, total) in correct.into_iter().zip(total).take_while(|(_, total)| *total > 0) {
        order += 1;
        let precision = if correct == 0 {
            halvings *= 2.0;
            1.0 / (halvings * total as f64)
        } else {
            correct as f64 / total as f64
        };
        logs += precision.ln();
    }
    let wanted = closest.unwrap_or(0) as f64;
    let brevity = if (said as f64) < wanted { (1.0 - wanted / said as f64).exp() } else { 1.0 };
    brevity * (logs / f64::from(order)).exp()
}

fn counts(tokens: &[String], n: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for gram in tokens.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

/// The tokens of mteval-v13a, in the steps of sacrebleu's `Tokenizer13a`.
fn tokens(text: &str) -> Vec<String> {
    static STEPS: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        [
            (r"([{-~\[-` -&(-+:-@/])", " ${1} "),
            (r"([^0-9])([.,])", "${1} ${2} "),
            (r"([.,])([^0-9])", " ${1} ${2}"),
            (r"([0-9])(-)", "${1} ${2} "),
        ]
        .map(|(pattern, with)| (Regex::new(pattern).expect("BUG: a pattern of this file"), with))
    });
    let mut line = text.trim_end().replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if line.contains('&') {
        let entities = [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")];
        for (entity, plain) in entities {
            line = line.replace(entity, plain);
        }
    }
    line = format!(" {line} ");
    for (pattern, with) in STEPS.iter() {
        line = pattern.replace_all(&line, *with).into_owned();
    }
    line.split_whitespace().map(str::to_owned).collect()
}
