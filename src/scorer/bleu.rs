//! BLEU of one answer against all its references together, and of many answers as a corpus: the mean over samples is a
//! mean of sentences and not that. Knows nothing of samples.

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
    Counts::of(answer, references).bleu(true)
}

/// N-grams of one answer or of many, by their length, and how long answers and references are.
#[derive(Debug, Clone, Default, PartialEq)]
struct Counts {
    correct: [usize; ORDER],
    total: [usize; ORDER],
    said: usize,
    wanted: usize,
}

impl Counts {
    fn of(answer: &[String], references: &[Vec<String>]) -> Counts {
        let said = answer.len();
        let closest = references.iter().map(Vec::len).min_by_key(|len| (len.abs_diff(said), *len));
        let mut all = Counts { said, wanted: closest.unwrap_or(0), ..Counts::default() };
        for n in 1..=ORDER {
            let mut wanted: HashMap<&[String], usize> = HashMap::new();
            for reference in references {
                for (gram, count) in counts(reference, n) {
                    let most = wanted.entry(gram).or_default();
                    *most = count.max(*most);
                }
            }
            for (gram, count) in counts(answer, n) {
                all.total[n - 1] += count;
                all.correct[n - 1] += count.min(wanted.get(gram).copied().unwrap_or(0));
            }
        }
        all
    }

    /// Over the lengths that occur, or over all of them: then one that is too short for some is worth nothing.
    fn bleu(&self, effective: bool) -> f64 {
        let Counts { correct, total, said, wanted } = *self;
        let none = correct.iter().all(|count| *count == 0);
        if none || (!effective && total.contains(&0)) {
            return 0.0;
        }
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
        let (said, wanted) = (said as f64, wanted as f64);
        let brevity = if said < wanted { (1.0 - wanted / said).exp() } else { 1.0 };
        brevity * (logs / f64::from(order)).exp()
    }
}

/// BLEU of a corpus, as sacrebleu's `corpus_bleu`: n-grams of all answers are counted together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Corpus(Counts);

impl Corpus {
    /// Adds an answer with its references.
    pub fn add(&mut self, answer: &str, targets: &[String]) {
        let references: Vec<_> = targets.iter().map(|target| tokens(target)).collect();
        let Counts { correct, total, said, wanted } = Counts::of(&tokens(answer), &references);
        for n in 0..ORDER {
            self.0.correct[n] += correct[n];
            self.0.total[n] += total[n];
        }
        self.0.said += said;
        self.0.wanted += wanted;
    }

    /// From 0 to 1.
    pub fn value(&self) -> f64 {
        self.0.bleu(false)
    }
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
