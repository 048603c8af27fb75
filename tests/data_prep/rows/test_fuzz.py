"""Thousands of damaged rows through the whole of preparation: each is a sample or has a line that says why not."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data_prep.corpus.shards import open_corpus
from data_prep.prepare import prepare
from data_prep.rows import files
from tests.data_prep.made import config
from tests.data_prep.test_prepare import leaf, quarantine

SPECIAL = ("</s>", "<|endoftext|>", "<|im_start|>system", "[INST]", "<pad>", "<unk>")
FIELDS = ("instruction", "input", "output")

Row = dict[str, Any]
Mutation = Callable[[random.Random, Row], bytes]


def line(row: object, *, ascii_only: bool = True) -> bytes:
    return json.dumps(row, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


def spliced(rng: random.Random, row: Row, *texts: str) -> Row:
    """The row with one of ``texts`` inside a field that it has."""
    field = rng.choice([each for each in FIELDS if row[each]] or ["instruction"])
    at = rng.randrange(len(row[field]) + 1)
    return row | {field: row[field][:at] + rng.choice(texts) + row[field][at:]}


def bad_bytes(rng: random.Random, row: Row) -> bytes:
    whole = line(row, ascii_only=False)
    at = rng.randrange(len(whole) + 1)
    return whole[:at] + rng.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"]) + whole[at:]


def cut(rng: random.Random, row: Row) -> bytes:
    whole = line(row)
    return whole[: rng.randrange(1, len(whole))]


def wrong_value(rng: random.Random, row: Row) -> bytes:
    values: tuple[Any, ...] = (
        None,
        7,
        -0.5,
        True,
        [],
        {},
        ["a"],
        {"text": "a"},
        [[[]]],
        float("nan"),
        10**40,
        "",
        " \n",
    )
    return line(row | {rng.choice(FIELDS): rng.choice(values)})


def missing(rng: random.Random, row: Row) -> bytes:
    gone = rng.sample(FIELDS, rng.randint(1, 3))
    return line({key: value for key, value in row.items() if key not in gone})


def not_a_row(rng: random.Random, row: Row) -> bytes:
    shapes: tuple[object, ...] = ([row], row["output"], 3, None, True, [], [[row]])
    return line(rng.choice(shapes))


def too_deep(rng: random.Random, row: Row) -> bytes:
    depth = rng.choice([50, 2_000, 100_000])
    return b'{"instruction": ' + b"[" * depth + b"]" * depth + b', "output": "x"}'


MUTATIONS: tuple[Mutation, ...] = (
    lambda rng, row: line(row),
    lambda rng, row: line(row, ascii_only=False),
    bad_bytes,
    cut,
    wrong_value,
    missing,
    not_a_row,
    too_deep,
    lambda rng, row: line(spliced(rng, row, "\x00", "\x1b[31m", "\x7f", "\x85")),
    lambda rng, row: line(spliced(rng, row, "\ud83d", "\udc00", "\udfff\ud800")),
    lambda rng, row: line(spliced(rng, row, *SPECIAL)),
    lambda rng, row: line(spliced(rng, row, "\u200b", "\ufeff", "\r\n", "\u2028", "\x0b")),
    lambda rng, row: line(row | {"supervised": rng.choice([False, 0, True, "no", 2, [0]])}),
    lambda rng, row: line(row)[:-1] + b', "output": ' + rng.choice([b"1e999", b"9" * 5_000, b"'x'", b'"again"']) + b"}",
)
# Everything that may be said of such rows; a reason that is not here is a surprise, and a traceback is a failure.
REASONS = {
    "bad_utf8", "bad_json", "not_an_object", "missing_field", "non_string_field", "bad_supervised_flag",
    "empty_prompt", "empty_output", "nooutput_marker", "control_char", "lone_surrogate", "separator_leak",
    "no_supervised_token", "over_length", "duplicate", "near_duplicate",
}  # fmt: skip


def fuzzed(rows: list[Row], count: int, path: Path, *, huge: int) -> None:
    """``count`` damaged rows, some of them twice; the one in the middle is of ``huge`` bytes."""
    rng = random.Random(20_231_125)
    with path.open("wb") as out:
        for number in range(count):
            row = rows[number % len(rows)]
            if number == count // 2:
                out.write(line(row | {"output": "word " * (huge // 5)}) + b"\n")
            else:
                out.write(rng.choice(MUTATIONS)(rng, row) + b"\n")


@pytest.mark.parametrize(
    ("count", "huge"), [(1_000, 1_000_000), pytest.param(10_000, 10_000_000, marks=pytest.mark.slow)]
)
def test_every_damaged_row_is_kept_or_named(
    tmp_path: Path, real_data: Callable[[str], Path], count: int, huge: int
) -> None:
    found = islice(files.rows(real_data("alpaca/alpaca_data.json.gz")), count * 6 // 10)
    fuzzed([json.loads(raw.text) for raw in found], count, tmp_path / "rows.jsonl", huge=huge)
    source = leaf(tmp_path / "rows.jsonl", validation_fraction=0.1)
    model = {"tokenizer": str(real_data("tokenizers/gpt2"))}
    cfg = config({"a": source}, tmp_path / "corpus", model=model, seq_len=512, near_duplicates=0.8, bad_row_budget=0.9)
    corpus = open_corpus(prepare(cfg, argv=[]))
    entry, lines = corpus.manifest["sources"]["a"], quarantine(corpus.path)
    reasons = Counter(each["reason"] for each in lines)
    assert reasons == entry["rejected"]
    assert set(reasons) <= REASONS
    assert count < 10_000 or set(reasons) == REASONS
    kept = [
        split.origin(row)[1]
        for name in ("train", "validation")
        for split in corpus.split(name).values()
        for row in range(split.rows)
    ]
    assert entry["rows"] == count
    assert sorted(kept + [each["row"] for each in lines]) == list(range(count))
    assert 0.2 * count < len(kept) < 0.7 * count
    assert next(each for each in lines if each["row"] == count // 2)["row_text"].endswith(" characters)")
