"""Which rows are held out: by the hash of their prompt, and a few of them however small the source is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.corpus.identity import corpus_digest
from data_prep.corpus.shards import open_corpus
from data_prep.prepare import prepare
from data_prep.rows.conversation import Conversation, Message
from data_prep.rows.record import Record
from data_prep.rows.split import Split
from tests.data_prep.made import alpaca_rows, config, write_json

STEP = 2**64 // 100


def keys(count: int) -> np.ndarray:
    """One hash in each hundredth, beginning in the middle of the first."""
    return np.array([STEP // 2 + place * STEP for place in range(count)], np.uint64)


@pytest.mark.parametrize(
    ("rows", "fraction", "held_out"),
    [
        (100, 0.2, 20),  # enough: the fraction decides
        (100, 0.08, 8),
        (100, 0.01, 8),  # 1 of 100 would be held out: FEWEST are
        (50, 0.001, 5),  # none: a tenth of them
        (10, 0.001, 1),
        (9, 0.001, 0),  # too few to give one away
        (100, 0.0, 0),  # nothing was asked for
    ],
)
def test_the_floor(rows: int, fraction: float, held_out: int) -> None:
    found = keys(rows)[::-1]
    assert np.count_nonzero(found < Split(fraction).raised(found)) == held_out


def test_equal_prompts_stay_on_one_side() -> None:
    twice = np.repeat(keys(20), 2)
    bound = Split(0.001).raised(twice)
    assert np.count_nonzero(twice < bound) == 4  # a tenth of 40 is 4, two prompts of two rows
    same = np.full(40, STEP, np.uint64)
    assert Split(0.001).raised(same) == Split(0.001).bound  # one prompt is in every row: none is held out


def test_a_bound_that_is_not_raised_is_what_holds_out_says() -> None:
    split = Split(0.3)
    assert split.raised(keys(100)) == split.bound == int(0.3 * 2**64)
    turns = [(Message("user", f"question {row}"), Message("assistant", "yes")) for row in range(200)]
    some = [Record("", row, "", conversation=Conversation(each)) for row, each in enumerate(turns)]
    assert 30 < sum(map(split.holds_out, some)) < 90


@pytest.mark.parametrize(("fraction", "held_out", "beyond"), [(0.01, 5, 4), (0.3, 12, None)])
def test_fifty_rows_hold_some_out_and_the_manifest_says_how_many_more(
    tmp_path: Path, fraction: float, held_out: int, beyond: int | None
) -> None:
    path = write_json(tmp_path / "rows.json", alpaca_rows(50))
    source = {"format": "alpaca", "path": str(path), "validation_fraction": fraction}
    cfg = config({"a": source}, tmp_path / "corpus")
    before = corpus_digest(cfg)
    corpus = open_corpus(prepare(cfg, argv=[]))
    entry = corpus.manifest["sources"]["a"]
    kept = {name: part["rows"] for name, part in entry["splits"].items()}
    assert sum(kept.values()) == 50
    assert kept["validation"] >= held_out if beyond is None else kept["validation"] == held_out
    assert entry.get("floor") == beyond
    assert corpus.manifest["config_sha256"] == before
