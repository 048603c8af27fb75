"""The shipped demo corpus is what its generator makes, no held-out question was asked in training, and the answers of
similar training rows are not the right ones: who answers held-out rows has learnt the tasks."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from conf.compose import compose
from data_prep.demo.families import FAMILIES, NEW_FAMILY, Draw, build, family_of, word_lists
from data_prep.demo.make import NEW, WORDS, compress, jsonl, new_rows, normalise, read, words_rows
from data_prep.demo.nearest import index, nearest_answers, prompt_of, without
from data_prep.rows.record import Record
from data_prep.rows.split import Split
from data_prep.sources import alpaca

Rows = list[dict[str, str]]


def split(rows: Rows, fraction: float) -> tuple[Rows, Rows]:
    """Training and held-out rows, as preparation splits them."""
    held_out = [Split(fraction).holds_out(Record("", 0, "", conversation=alpaca.read(row))) for row in rows]
    return (
        [row for row, out in zip(rows, held_out, strict=True) if not out],
        [row for row, out in zip(rows, held_out, strict=True) if out],
    )


@pytest.fixture(scope="module")
def words() -> Rows:
    return read(WORDS)


@pytest.fixture(scope="module")
def words_split(words: Rows) -> tuple[Rows, Rows]:
    return split(words, compose(["data=demo"]).data.sources["words"].validation_fraction)


@pytest.mark.parametrize(("path", "made"), [(WORDS, words_rows), (NEW, new_rows)])
def test_shipped_files_are_what_the_generator_makes(path: Path, made: object) -> None:
    assert callable(made)
    assert gzip.decompress(path.read_bytes()) == jsonl(made())
    assert path.stat().st_size < 1_000_000


def test_compression_holds_no_time_and_no_name() -> None:
    packed = compress(b"row\n" * 100)
    assert packed[3:8] == bytes(5)  # flags (no name) and modification time (RFC 1952)
    assert gzip.decompress(packed) == b"row\n" * 100


def test_families_are_equally_large_and_known_by_their_prompts(words: Rows) -> None:
    counts = Counter(family_of(prompt_of(row)) for row in words)
    assert counts == {family.name: len(words) // len(FAMILIES) for family in FAMILIES}
    assert len(FAMILIES) >= 6
    assert len(words) >= 20_000
    assert {family_of(prompt_of(row)) for row in read(NEW)} == {NEW_FAMILY.name}
    assert family_of("What is the capital of France?") is None


def test_a_family_is_known_through_the_plain_template() -> None:
    assert family_of("Turn this into a list.\n\nThings: lamp, stove and pen\n") == "list"


def test_every_phrasing_is_used() -> None:
    for family in (*FAMILIES, NEW_FAMILY):
        used = {Draw(family.name, number).below(len(family.phrasings), "phrasing") for number in range(100)}
        assert used == set(range(len(family.phrasings)))


def test_no_prompt_stands_twice(words: Rows) -> None:
    prompts = [normalise(prompt_of(row)) for row in [*words, *read(NEW)]]
    assert len(set(prompts)) == len(prompts)


def test_answers_are_right() -> None:
    """Recomputed here from the prompt's text alone."""
    families = {family.name: family for family in FAMILIES}
    for number in range(200):
        row = build(families["reverse"], number)
        asked = prompt_of(row).split(":")[1].split()
        assert row["output"].removeprefix("Backwards: ").split() == asked[::-1]
        row = build(families["pick"], number)
        asked = prompt_of(row).split(":")[1].split()
        place = "last" if " last " in prompt_of(row) else "first"
        assert row["output"] == f"The {place} word is {asked[-1 if place == 'last' else 0]}."


def test_word_lists_are_plain_and_distinct() -> None:
    for words in word_lists().values():
        assert len(set(words)) == len(words) >= 40
        assert all(word.isascii() and word.isalpha() for word in words)


def test_held_out_rows_are_many_in_each_family_and_not_in_training(words_split: tuple[Rows, Rows]) -> None:
    training, held_out = words_split
    counts = Counter(family_of(prompt_of(row)) for row in held_out)
    assert sum(counts.values()) >= 200
    assert min(counts[family.name] for family in FAMILIES) >= 30
    asked = {normalise(prompt_of(row)) for row in training}
    assert asked.isdisjoint(normalise(prompt_of(row)) for row in held_out)
    assert without([*training, *held_out], (prompt_of(row) for row in held_out)) == training


def test_nearest_training_row_rarely_has_the_answer(words_split: tuple[Rows, Rows]) -> None:
    training, held_out = words_split
    answers = nearest_answers(training, [prompt_of(row) for row in held_out])
    right = [answer == row["output"] for answer, row in zip(answers, held_out, strict=True)]
    assert sum(right) / len(right) <= 0.30


def test_nearest_finds_the_row_itself_and_the_same_words_in_another_phrasing(words: Rows) -> None:
    some = words[:400]
    assert nearest_answers(some, [prompt_of(row) for row in some]) == [row["output"] for row in some]
    lookup = index(["Thank Anna for the lamp.", "Reverse these words: pen stove robot", "Make a list of a, b and c."])
    assert lookup.nearest("Write the words backwards.\nWords: pen stove robot") == 1


def test_shipped_rows_are_alpaca_rows(words: Rows) -> None:
    for row in words[:50]:
        assert list(json.loads(json.dumps(row))) == ["instruction", "input", "output"]
        assert alpaca.read(row).messages[-1].content == row["output"]
