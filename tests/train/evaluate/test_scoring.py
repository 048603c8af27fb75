"""Exact match and ROUGE-L: normalisation, agreement with rouge_score, and scripts it does not know."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from train.evaluate.scoring import exact_match, normalise, rouge_l

ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("Paris", "paris.", True),
        ("  two\n words ", "Two words", True),
        ("ﬁne", "fine", True),  # a ligature, which NFKC takes apart
        ("1, 2, 3", "1 2 3", False),  # punctuation can be the answer
        ("the cat", "cat", False),
        ("", "", True),
        ("", "x", False),
        ("1.", "1", True),
        ("straße", "STRASSE", True),
    ],
)
def test_exact_match(answer: str, reference: str, right: bool) -> None:
    assert exact_match(answer, reference) is right


@given(st.text())
def test_normalise_is_stable_under_case_and_spaces(text: str) -> None:
    assert exact_match(f"  {text}\t", text)
    assert "  " not in normalise(text)


@given(ASCII, ASCII)
def test_rouge_l_equals_rouge_score_on_ascii(answer: str, reference: str) -> None:
    theirs = RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    words = any(char.isalnum() for char in answer + reference)
    assert rouge_l(answer, reference) == (theirs if words else float(normalise(answer) == normalise(reference)))


@given(st.text(min_size=1))
def test_rouge_l_of_a_text_with_itself_is_one(text: str) -> None:
    assert rouge_l(text, text) == pytest.approx(1.0)


def test_rouge_l_by_hand() -> None:
    # LCS of "a b c d" and "a x c" is "a c": precision 2/3, recall 2/4.
    assert rouge_l("a x c", "a b c d") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_scripts_without_spaces_are_scored_by_character() -> None:
    assert rouge_l("北京是首都", "北京是首都") == 1.0
    assert rouge_l("北京", "北京是首都") == pytest.approx(2 * 1.0 * 0.4 / 1.4)
    assert rouge_l("красный дом", "красный кот") == pytest.approx(0.5)
