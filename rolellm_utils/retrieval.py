"""Words and sentences of English and Chinese text, and BM25 over them."""

import re

import bm25s
import numpy as np

SENTENCE_END = re.compile(r"[.!?…][\"”’')]*(?=\s|$)|[。！？…][”’」』]*")


def whole_sentences(text):
    """The text up to its last sentence end; "" when no sentence ends in it."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""


def tokens(text, language):
    """The BM25 tokens of a text: lower-cased words; for Chinese jieba's words, punctuation dropped."""
    if language == "zh":
        import logging

        import jieba

        jieba.setLogLevel(logging.WARNING)
        return [word.lower() for word in jieba.lcut(text) if re.match(r"\w", word)]
    return re.findall(r"\w+(?:'\w+)?", text.lower())


def scores(texts, queries, language):
    """The BM25 score of every text for every query: float array of shape (queries, texts)."""
    documents = [tokens(text, language) or [""] for text in texts]
    index = bm25s.BM25()
    index.index(documents, show_progress=False)
    vocabulary = index.vocab_dict
    rows = []
    for query in queries:
        known = [token for token in tokens(query, language) if token in vocabulary]
        rows.append(index.get_scores(known) if known else np.zeros(len(texts)))
    return np.array(rows, dtype=float).reshape(len(queries), len(texts))
