"""Digests of gradients: two passes give the same, another pass gives others, and training does not notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed import run_distributed
from tests.train.engine.test_engine import OPTIM, Toy, feed, make_engine, named, nll
from tests.train.engine.test_in_order import weights as weights_of
from tests.train.engine.test_in_order import whole
from train.engine.digests import digest
from train.ranks.group import Ranks

CASES = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]


def digested(ranks: Ranks) -> list[tuple[bool, bool, set[str], Any, Any]]:
    found = []
    for stage, dtype in CASES:
        states = []
        for watched in (False, True):
            engine = make_engine(ranks, stage, 1, dtype)
            if (stage, dtype) == (3, "fp32"):
                engine.sum_in_order()  # what has taken the gradients over gets them back
            for step in range(2):
                if watched:
                    first, again, other = (
                        {name: int(each) for name, each in engine.digests(nll(engine.module, 0, row)).items()}
                        for row in (ranks.rank, ranks.rank, ranks.rank + 1)
                    )
                feed(engine, ranks, step, 1)
                engine.step(OPTIM.lr)
            states.append(weights_of(engine))
        found.append((first == again, all(first[name] != other[name] for name in first), set(first), *states))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_digests_say_whether_two_passes_agree_and_change_nothing(world: int) -> None:
    ranks = run_distributed(digested, world)
    for number, case in enumerate(CASES):
        for same, differs, names, _, _ in (rank[number] for rank in ranks):
            assert (same, differs, names) == (True, True, set(named(Toy()))), case
        plain, watched = (whole([rank[number][kind] for rank in ranks]) for kind in (3, 4))
        assert plain == watched, case


def test_a_digest_knows_bits_and_places() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5_000_000, generator=generator)  # more than a chunk
    seen = {int(digest(values))}
    for place in (0, 1, 4_194_304, 4_999_999):
        changed = values.clone()
        changed.view(torch.int32)[place] += 1
        seen.add(int(digest(changed)))
    seen.add(int(digest(values.flip(0))))
    seen.add(int(digest(values.bfloat16())))
    assert len(seen) == 7
    assert int(digest(values.clone())) in seen
