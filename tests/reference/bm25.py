"""Scores of BM25, written down from the formula of Robertson et al. (1995) with Lucene's idf.

Prints what the test in src/retrieval/bm25.rs expects. Plain Python:  python3 tests/reference/bm25.py
"""
import math
import re

TEXTS = [
    "The quick brown fox jumps over the lazy dog",
    "A lazy dog sleeps; the DOG snores.",
    "Foxes are quick",
    "Nothing to see here",
]
K1, B = 1.2, 0.75

documents = [re.findall(r"\w+", text.lower()) for text in TEXTS]
mean = sum(map(len, documents)) / len(documents)


def score(query, document):
    total = 0.0
    for word in query:
        holders = sum(word in other for other in documents)
        idf = math.log(1 + (len(documents) - holders + 0.5) / (holders + 0.5))
        count = document.count(word)
        total += idf * count * (K1 + 1) / (count + K1 * (1 - B + B * len(document) / mean))
    return total


for query in ["lazy dog", "quick", "dog dog"]:
    scores = [(i, score(query.split(), document)) for i, document in enumerate(documents)]
    print(query, sorted([s for s in scores if s[1] > 0], key=lambda s: (-s[1], s[0])))
