"""Values of BLEU, chrF and ROUGE that `src/scorer` is held against.

    pip install sacrebleu==2.6.0 rouge-score==0.1.2
    python -P tests/reference/overlap.py > tests/reference/overlap.json     (-P: `statistics.py` beside it is not the library)
"""

import json
import random

import sacrebleu
from rouge_score import rouge_scorer

PAIRS = [
    ("The cat sat on the mat.", ["The cat is sitting on the mat."]),
    ("The cat sat on the mat.", ["The cat sat on the mat."]),
    ("the the the the", ["the cat is on the mat", "there is a cat on the mat"]),
    ("It is 3,141.59 (about), isn't it?", ["It's about 3,141.59, is it not?", "About 3141.59."]),
    ("A well-known 1990-2000 state-of-the-art method", ["A well known method of 1990-2000"]),
    ("&quot;Tom &amp; Jerry&quot; <skipped>", ['"Tom & Jerry"', "Tom and Jerry"]),
    ("Fußgänger überqueren die Straße", ["Fussgänger überqueren die Strasse"]),
    ("猫はマットの上に座った", ["猫がマットの上に座っている"]),
    ("one", ["one two three four five"]),
    ("one two three four five six seven", ["one"]),
    ("a b c d", ["d c b a"]),
    ("a", ["b"]),
    ("", ["something"]),
    ("something", [""]),
    ("line one\nline two", ["line one line two", "line two\nline one"]),
    ("x = f(a, b) # 5-3", ["x = f(b, a) # 5 - 3"]),
]


def drawn():
    """Pairs of drawn words: what nobody thought of."""
    rng = random.Random(7)
    words = "the a cat dog sat on mat, ran. to-day 1,000 3.5 (very) big &".split()
    for _ in range(24):
        text = lambda: " ".join(rng.choice(words) for _ in range(rng.randint(1, 12)))
        yield text(), [text() for _ in range(rng.randint(1, 3))]


def main():
    kinds = ["rouge1", "rouge2", "rougeL"]
    rouge = rouge_scorer.RougeScorer(kinds, use_stemmer=False)
    rows = []
    for answer, targets in PAIRS + list(drawn()):
        best = rouge.score_multi(targets, answer)
        values = {
            "bleu": sacrebleu.sentence_bleu(answer, targets).score / 100,
            "chrf": sacrebleu.sentence_chrf(answer, targets).score / 100,
        }
        values.update({kind: best[kind].fmeasure for kind in kinds})
        rows.append({"answer": answer, "targets": targets, "values": values})
    # Segments may have fewer references than others; the rest are None.
    most = max(len(row["targets"]) for row in rows)
    answers = [row["answer"] for row in rows]
    columns = [[row["targets"][i] if i < len(row["targets"]) else None for row in rows] for i in range(most)]
    corpus = {
        "bleu": sacrebleu.corpus_bleu(answers, columns).score / 100,
        "chrf": sacrebleu.corpus_chrf(answers, columns).score / 100,
    }
    print(json.dumps({"corpus": corpus, "rows": rows}, indent=1, ensure_ascii=False))


main()
