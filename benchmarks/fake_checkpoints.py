"""The checkpoints of a fake cluster: every rank's own part of a real model's parameters, saved, found and read back."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch

from benchmarks.fake_phases import MODEL, config
from benchmarks.fake_ranks import FakeGroup, Spent, watched
from conf.whole_numbers import ceil_div
from train.checkpoint import save
from train.checkpoint.layout import MANIFEST, folder_of
from train.checkpoint.resume import find_start
from train.engine import Engine
from train.engine.fragments import Fragment
from train.engine.restoring import read_into
from train.families import known_model
from train.ranks.group import Ranks
from train.state import TrainState

_ZEROS = torch.zeros(1)


class Sharded:
    """The state that a rank owns under ZeRO ``stage`` 1 or 3, as the engine shows it to checkpoints, all of zeros.

    ``shapes`` are those of the parameters (``shapes_of``). All elements of a fragment are one number in memory.
    """

    optimizer_steps, extras = 1, ()

    def __init__(self, ranks: Ranks, stage: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.ranks, self.stage, self._shapes = ranks, stage, shapes
        self.parameters = {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}

    def fragments(self) -> list[Fragment]:
        own = self._stage3() if self.stage == 3 else self._stage1()
        made = []
        for name, start, numel in own:
            weight = _ZEROS.expand(numel)
            made.append(Fragment(name, start, weight, {"exp_avg": weight, "exp_avg_sq": weight}))
        return made

    def _stage3(self) -> Iterator[tuple[str, int, int]]:
        """Every parameter in equal parts."""
        for name, shape in self._shapes.items():
            numel = math.prod(shape)
            part = ceil_div(numel, self.ranks.world)
            start = self.ranks.rank * part
            if start < numel:
                yield name, start, min(part, numel - start)

    def _stage1(self) -> Iterator[tuple[str, int, int]]:
        """Matrices end to end in equal parts, and vectors, which have no weight decay."""
        for vectors in (False, True):
            group = {name: math.prod(shape) for name, shape in self._shapes.items() if (len(shape) == 1) == vectors}
            part = ceil_div(sum(group.values()), self.ranks.world)
            first, last = self.ranks.rank * part, (self.ranks.rank + 1) * part
            ends = list(itertools.accumulate(group.values(), initial=0))
            for name, (begin, end) in zip(group, pairwise(ends), strict=True):
                low, high = max(first, begin), min(last, end)
                if low < high:
                    yield name, low - begin, high - low


def writable(fragment: Fragment) -> Fragment:
    """The same fragment with memory of its own."""
    weight = torch.empty(fragment.numel)
    return replace(fragment, weight=weight, moments=dict.fromkeys(fragment.moments, weight))


@cache
def shapes_of(divisor: int) -> dict[str, tuple[int, ...]]:
    """Of MODEL's parameters; matrices have a ``divisor``-th of their rows."""
    from transformers import AutoConfig, AutoModelForCausalLM

    found = dict(known_model(MODEL) or {})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(found.pop("model_type"), **found))
    return {
        name: (max(1, each.shape[0] // divisor), *each.shape[1:]) if each.dim() > 1 else tuple(each.shape)
        for name, each in model.named_parameters()
    }


def state_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of the whole run's weights and moments."""
    return 3 * 4 * sum(map(math.prod, shapes.values()))


@dataclass(frozen=True)
class Checkpointed:
    saving: dict[int, Spent]
    restoring: dict[int, Spent]
    """Of the watched ranks: finding the checkpoint, verifying it and reading the rank's own part."""
    manifest: int
    """Bytes of MANIFEST.json."""
    read: dict[int, int]
    """Bytes of weights and moments that a watched rank reads when it resumes."""


def checkpointing(folder: Path, world: int, stage: int, *, divisor: int, trace: bool = False) -> Checkpointed:
    """Save on every rank; find, verify and read back on the watched ones."""
    run_dir, shapes = folder / f"zero-{stage}", shapes_of(divisor)
    cfg = config(run_dir)
    extra = {"state": TrainState().to_dict(), "stream": {}, "base_hash": "b" * 64, "tokenizer": "t" * 64, "config": {}}

    def saving(ranks: Ranks) -> None:
        engine = cast(Engine, Sharded(ranks, stage, shapes))
        saved = save(run_dir, engine, ranks=ranks, attempt=0, step=1, extra=extra, keep=2)
        assert not isinstance(saved, str), saved

    def restoring(ranks: Ranks) -> int:
        stored = find_start(cfg, run_dir, ranks)
        assert stored is not None
        with stored:
            ranks.together(lambda: stored.rng(ranks.rank))
            own = [writable(each) for each in Sharded(ranks, stage, shapes).fragments()]
            ranks.together(lambda: read_into(own, stored.read))
        return stored.bytes_read

    first = FakeGroup[None](world, trace=trace)
    first.run(saving)
    second = FakeGroup[int](world, driven=watched(world), trace=trace)
    read = second.run(restoring)
    manifest = (folder_of(run_dir, 1) / MANIFEST).stat().st_size
    shutil.rmtree(run_dir)
    return Checkpointed({rank: first.spent[rank] for rank in watched(world)}, second.spent, manifest, read)
