"""Scores of one generated answer against its reference: exact match and ROUGE-L. Pure functions over text."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from rouge_score.rouge_scorer import RougeScorer

# A token is a run of letters and digits, or one character of a script without spaces (Han, kana, Hangul syllables).
# On ASCII text this equals rouge_score's own tokenizer, which drops every other script and so scores a perfect Chinese
# answer 0.
UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
TOKEN = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")


class WordTokenizer:
    """Splits text of any script into lower-case words, with the interface that rouge_score requires."""

    def tokenize(self, text: str) -> list[str]:
        return TOKEN.findall(text.lower())


@cache
def rouge_scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], tokenizer=WordTokenizer())


def normalise(text: str) -> str:
    """``text`` as exact match compares it: NFKC, case folded, white space collapsed, one final full stop removed.

    SQuAD's normalisation also removes articles and all punctuation; this one keeps them, because punctuation can be the
    answer.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.removesuffix(".").rstrip()


def exact_match(answer: str, reference: str) -> bool:
    """Whether both texts are equal after ``normalise``."""
    return normalise(answer) == normalise(reference)


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, 0 to 1 (Lin 2004, "ROUGE", section 3.2; no stemming).

    If neither text has a word (for example, both are punctuation), the score is 1 for an exact match and otherwise 0.
    """
    if not TOKEN.search(answer) and not TOKEN.search(reference):
        return float(exact_match(answer, reference))
    return float(rouge_scorer().score(reference, answer)["rougeL"].fmeasure)
