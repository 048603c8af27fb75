"""Words of a text and hashes of their n-grams: what near-duplicates and overlap with evaluation sets are measured in.

Words are lower-cased runs of letters and digits, without punctuation (as in appendix C of Brown et al. 2020,
"Language Models are Few-Shot Learners"); in scripts that are written without spaces every character is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

Hashes = npt.NDArray[np.uint64]

# Kana, Han, Hangul, Thai, Lao, Khmer, Myanmar.
WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that multiplying by it loses no bit: 2^64 over the golden ratio."""


def words(text: str) -> list[str]:
    """The words of ``text``, in order."""
    return WORD.findall(text.lower())


def word_hashes(words: Sequence[str]) -> Hashes:
    """64-bit hash of each word."""
    digest = xxhash.xxh3_64_intdigest
    return np.array([digest(word.encode("utf-8", "surrogatepass")) for word in words], np.uint64)


def ngram_hashes(hashed: Hashes, n: int) -> Hashes:
    """64-bit hash of each run of ``n`` words, in order; empty if there are fewer. ``hashed``: ``word_hashes(...)``.

    A polynomial in FACTOR modulo 2^64 (Karp and Rabin 1987), so that a million rows are a few array operations.
    """
    count = max(len(hashed) - n + 1, 0)
    found: Hashes = np.full(count, n, np.uint64)
    for place in range(n):
        found = found * FACTOR + hashed[place : place + count]
    return found
