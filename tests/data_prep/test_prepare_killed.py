"""A preparation that is killed at random moments, whatever it was doing, ends in the same bytes as one that was not."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conf.errors import MissingInput
from data_prep.blocks import process as block
from data_prep.blocks import workers as pool
from data_prep.corpus import shard_writer
from data_prep.corpus.shards import open_corpus
from data_prep.prepare import prepare
from tests.data_prep.made import alpaca_rows, config, write_json
from tests.data_prep.test_prepare import digests

LIVES = 6
ROWS = 300


def slowly(real: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return real(*arguments)

    return slow


def prepare_slowly(folder: Path, name: str) -> None:
    """Blocks of 16 rows and shards of 32, with a rest at each, so that a kill falls between or inside of them."""
    pool.BLOCK_ROWS = 16
    pool.process = slowly(block.process, 0.02)
    shard_writer.publish = slowly(shard_writer.publish, 0.02)
    shard_writer.SplitWriter.__init__.__kwdefaults__.update(shard_rows=32, batch_rows=8)
    leaf = {"format": "alpaca", "path": str(folder / "rows.json"), "validation_fraction": 0.2}
    prepare(config({"a": leaf}, folder / name), argv=[])


def block_times(corpus: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((corpus / ".work/a").glob("0*.json"))}


@pytest.mark.faults
def test_killed_at_random_moments(tmp_path: Path) -> None:
    repeated = alpaca_rows(ROWS)
    write_json(tmp_path / "rows.json", [*repeated, *repeated[:40]])
    context = multiprocessing.get_context("fork")
    whole = context.Process(target=prepare_slowly, args=(tmp_path, "whole"))
    began = time.monotonic()
    whole.start()
    whole.join(120)
    lasted = time.monotonic() - began
    assert whole.exitcode == 0
    seed = random.SystemRandom().randrange(2**32)
    print(f"kills drawn from seed {seed}")
    moments = sorted(random.Random(seed).uniform(0.1, lasted) for _ in range(LIVES))
    corpus, moment = tmp_path / "killed", 0.0
    for life in (*moments, 600.0):
        before = block_times(corpus)
        child = context.Process(target=prepare_slowly, args=(tmp_path, "killed"))
        child.start()
        # Each life goes on where the last one ended, so it lasts as long as the moments are apart.
        child.join(life - moment)
        moment = life
        if not child.is_alive():
            assert child.exitcode == 0
            break
        child.kill()
        child.join()
        if not (corpus / "MANIFEST.json").exists():
            kept = block_times(corpus)
            assert {name: kept.get(name) for name in before} == before, "a finished block was done again"
            with pytest.raises(MissingInput, match=r"unfinished|no prepared corpus"):
                open_corpus(corpus)
    assert digests(corpus) == digests(tmp_path / "whole")
