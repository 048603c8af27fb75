"""``python -m train`` with the rank PLANT_RANK delayed by PLANT_SECONDS at the places that PLANT names.

``corpus``: when it opens the corpus, before the process group; ``reader``: at its ninth batch; ``save`` and
``evaluation``: at each.
"""

from __future__ import annotations

import os
import runpy
import time
from typing import Any

import train.checkpoint.saver
import train.evaluate.evaluation
import train.main
from train.batches.feed import Feed


def delayed(call: Any, nth: int = 1) -> Any:
    """``call`` that sleeps before its ``nth`` time and from then on."""
    calls = 0

    def planted_delay(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= nth:
            time.sleep(float(os.environ["PLANT_SECONDS"]))
        return call(*arguments, **named)

    return planted_delay


def plant(what: str) -> None:
    if what == "reader":
        Feed.batch = delayed(Feed.batch, nth=9)  # type: ignore[method-assign]
    elif what == "corpus":
        train.main.open_prepared = delayed(train.main.open_prepared)
    elif what == "save":
        train.checkpoint.saver.write_part = delayed(train.checkpoint.saver.write_part)
    elif what == "evaluation":
        train.evaluate.evaluation.held_out_loss = delayed(train.evaluate.evaluation.held_out_loss)


if os.environ["RANK"] == os.environ["PLANT_RANK"]:
    for each in os.environ["PLANT"].split():
        plant(each)
runpy.run_module("train", run_name="__main__", alter_sys=True)
