"""Near-duplicates: what is found, which row stays, and that preparation names both."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from data_prep import sources
from data_prep.corpus.shards import open_corpus
from data_prep.filters import dedup
from data_prep.filters.ngrams import ngram_hashes, word_hashes, words
from data_prep.prepare import prepare
from data_prep.rows import files
from data_prep.rows.conversation import Conversation, Message
from tests.data_prep.made import REAL, alpaca_rows, config, needs_real_data, write_json
from tests.data_prep.test_prepare import leaf, quarantine


def row(text: str, answer: str = "yes") -> Conversation:
    return Conversation((Message("user", text), Message("assistant", answer)))


def found(rows: list[Conversation], threshold: float = 0.8) -> dict[int, int]:
    repeats = dedup.near([dedup.signatures(rows)], threshold, skip=())
    return {place: each.original for place, each in repeats.items()}


def text_of(rng: random.Random, count: int) -> list[str]:
    return [f"w{rng.randrange(10_000)}" for _ in range(count)]


def jaccard(one: Conversation, other: Conversation) -> float:
    sets = [
        set(ngram_hashes(word_hashes(words(" ".join(m.text for m in each.messages))), 3).tolist())
        for each in (one, other)
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_words_are_lower_case_without_punctuation_and_one_per_han_character() -> None:
    assert words("Don't  STOP_now, 3.5!") == ["don", "t", "stop", "now", "3", "5"]
    assert words("三原色 are 3") == ["三", "原", "色", "are", "3"]


def test_ngrams_are_equal_only_for_equal_runs() -> None:
    hashed = word_hashes(["a", "b", "c", "a", "b", "d"])
    grams = ngram_hashes(hashed, 2)
    assert len(grams) == 5
    assert grams[0] == grams[3]
    assert len(set(grams.tolist())) == 4
    assert len(ngram_hashes(hashed, 7)) == 0
    assert ngram_hashes(word_hashes(["b", "a"]), 2)[0] != grams[0]


def test_estimates_follow_the_true_overlap() -> None:
    rng = random.Random(5)
    rows, others = [], []
    for changed in range(40):
        plain = text_of(rng, 60)
        rows.append(row(" ".join(plain)))
        others.append(row(" ".join(plain[: 60 - changed] + text_of(rng, changed))))
    ours = [dedup._share(*pair) for pair in zip(dedup.signatures(rows), dedup.signatures(others), strict=True)]
    true = [jaccard(*pair) for pair in zip(rows, others, strict=True)]
    assert np.abs(np.array(ours) - true).max() < 4 * 0.5 / np.sqrt(dedup.PERMUTATIONS)


def test_reworded_rows_are_found_and_others_are_not() -> None:
    rng = random.Random(7)
    rows = [row(" ".join(text_of(rng, 80))) for _ in range(300)]
    changed = [" ".join(each.messages[0].content.split()[:-2]).upper() + ", new end!" for each in rows[:100]]
    repeats = found(rows + [row(text) for text in changed])
    assert repeats == {300 + place: place for place in range(100)}


def test_the_earliest_stays_and_a_chain_does_not_swallow_what_differs() -> None:
    base = text_of(random.Random(1), 100)
    links = [row(" ".join([*base[: 100 - 6 * step], *text_of(random.Random(step + 9), 6 * step)])) for step in range(4)]
    repeats = found(links, threshold=0.8)
    assert repeats == {1: 0}  # row 2 is near row 1, which is out; it is too far from row 0
    assert jaccard(links[0], links[1]) > 0.85
    assert jaccard(links[0], links[2]) < 0.79


def test_short_and_wordless_texts() -> None:
    rows = [row("Hi", ""), row("hi!", ""), row("Ho", ""), row("🙂", "👍"), row("🙂", "👎"), row("🙂", "👍")]
    assert found(rows) == {1: 0, 5: 3}
    assert dedup.signatures([]).shape == (0, dedup.PERMUTATIONS)


def test_preparation_names_the_row_that_each_resembles(tmp_path: Path) -> None:
    long = "Tell me in one short sentence why the sky above the sea looks blue at noon"
    rows: list[object] = [*alpaca_rows(20), {"instruction": f"{long} today.", "output": "Because air scatters blue."}]
    rows += [rows[3], {"instruction": f"{long}!", "output": "because air scatters blue"}]
    path = write_json(tmp_path / "rows.json", rows)
    corpus = open_corpus(prepare(config({"a": leaf(path)}, tmp_path / "corpus", near_duplicates=0.7), argv=[]))
    lines = [(line["row"], line["reason"], line["detail"]) for line in quarantine(corpus.path)]
    assert lines == [
        (21, "duplicate", f"the same as row 3 of {path}"),
        (22, "near_duplicate", lines[1][2]),
    ]
    assert lines[1][2].endswith(f"% the same as row 20 of {path}")
    assert corpus.manifest["sources"]["a"]["rejected"] == {"duplicate": 1, "near_duplicate": 1}
    assert corpus.split("train")["a"].rows == 21


@needs_real_data
@pytest.mark.slow
def test_near_duplicates_of_real_alpaca_say_the_same() -> None:
    read = sources.reader("alpaca")
    rows = [read(files.parse(raw.text)) for raw in files.rows(REAL / "alpaca/alpaca_data.json.gz")]
    repeats = dedup.near([dedup.signatures(rows)], 0.7, skip=())
    assert len(repeats) == 11  # each of them read: nine reworded questions, two further tasks on one long abstract
    assert all(each.original < place for place, each in repeats.items())
    assert min(jaccard(rows[place], rows[each.original]) for place, each in repeats.items()) > 0.6
