"""Restoring: every rank reads its own share alone, and the model computes with the same bits as the one that saved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.errors import StorageError
from tests.distributed import run_distributed
from tests.train.engine.test_engine import OPTIM, Toy, feed, make_engine
from train import checkpoint
from train.checkpoint.layout import Stored
from train.engine import Engine
from train.engine.restoring import check_shapes
from train.ranks.group import Ranks

ELEMENTS = 19 * 12 + 12 * 12 + 12 + 12 + 12
"""Of the toy model."""
KINDS = 3
"""Weight and two moments, each fp32."""

Case = tuple[int, str, dict[str, Any]]
CASES: list[Case] = [
    (0, "fp32", {}),
    (1, "fp32", {}),
    (2, "fp32", {}),
    (3, "fp32", {}),
    (1, "bf16", {}),
    (2, "bf16", {}),
    (3, "bf16", {}),
    (2, "bf16", {"offload": "optimizer"}),
    (3, "bf16", {"offload": "all"}),
    (3, "bf16", {"persistence_threshold": 100}),
]


def label(case: Case) -> str:
    return "-".join([str(case[0]), case[1], *map(str, case[2].values())])


def engine_of(ranks: Ranks, case: Case) -> Engine:
    stage, dtype, settings = case
    return make_engine(ranks, stage, 1, dtype, **settings)


def train_one(engine: Engine, ranks: Ranks, step: int) -> None:
    feed(engine, ranks, step, 1)
    assert not engine.step(OPTIM.lr).skipped


def save(engine: Engine, ranks: Ranks, run_dir: Path, step: int) -> Path:
    published = checkpoint.save(run_dir, engine, ranks=ranks, attempt=0, step=step, extra={}, keep=9)
    assert not isinstance(published, str), published
    return published.path


def stored_at(path: Path) -> Stored:
    return Stored(path, json.loads((path / "MANIFEST.json").read_text()))


def computed_with(engine: Engine) -> dict[str, torch.Tensor]:
    with engine.whole(list(engine.parameters.values())):
        return {name: p.detach().to("cpu", copy=True) for name, p in engine.parameters.items()}


def held(engine: Engine) -> dict[str, torch.Tensor]:
    return {f"{f.name} {kind}": t.clone() for f in engine._fragments("held") for kind, t in f.tensors.items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def restore(engine: Engine, path: Path) -> int:
    """Bytes that this rank read of the state."""
    with stored_at(path) as stored:
        engine.restore(stored.read, stored.shapes, stored.manifest["optimizer_steps"], stored.extras)
        return stored.bytes_read


def holds_rounded(engine: Engine, path: Path) -> bool:
    """Whether the model computes with the stored fp32 weights, rounded to its dtype."""
    master = checkpoint.read_weights(path)
    computed = computed_with(engine)
    return equal(computed, {name: master[name].to(weight.dtype) for name, weight in computed.items()})


def findings(ranks: Ranks, folder: str, cases: Sequence[Case] = CASES) -> dict[str, dict[str, Any]]:
    """Per case: is what a new engine restored, and its next step, what the engine has that saved; bytes read."""
    found = {}
    for case in cases:
        engine, again = engine_of(ranks, case), engine_of(ranks, case)
        for step in range(2):
            train_one(engine, ranks, step)
        path = save(engine, ranks, Path(folder, label(case)), 2)
        moved = not equal(computed_with(again), computed_with(engine))
        found[label(case)] = {"moved": moved, "bytes": restore(again, path), "rounded": holds_rounded(again, path)}
        for when in ("restored", "one step later"):
            found[label(case)][when] = equal(computed_with(again), computed_with(engine)) and equal(
                held(again), held(engine)
            )
            for each in (engine, again):
                train_one(each, ranks, 2)
    return found


def across(ranks: Ranks, folder: str) -> dict[str, tuple[bool, int]]:
    """Checkpoints of two ranks under every stage, restored under every stage: the weights are the stored ones; bytes"""
    found = {}
    for case in (*CASES[:4], CASES[-1]):
        engine = engine_of(ranks, case)
        for source in CASES[:4]:
            path = Path(folder, label(source), "checkpoints", "step-00000002")
            count = restore(engine, path)
            found[f"{label(source)} at {label(case)}"] = (holds_rounded(engine, path), count)
    return found


def both(ranks: Ranks, folder: str, source: str) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[bool, int]]]:
    return findings(ranks, folder), across(ranks, source)


@pytest.mark.slow
def test_every_rank_reads_its_share_and_all_compute_with_what_was_stored(tmp_path: Path) -> None:
    stored = 4 * KINDS * ELEMENTS
    two = [(answer, {}) for answer in run_distributed(findings, 2, str(tmp_path / "2"))]
    for world in (1, 2, 3):
        answers = two if world == 2 else run_distributed(both, world, str(tmp_path / str(world)), str(tmp_path / "2"))
        for case in CASES:
            found = [answer[0][label(case)] for answer in answers]
            assert all(each["moved"] for each in found), case  # or a restore that does nothing would pass
            assert all(each["rounded"] and each["restored"] and each["one step later"] for each in found), (case, found)
            assert sum(each["bytes"] for each in found) == stored, case
            if case[0]:  # stage 0 deals out whole parameters; in the others a share ends anywhere, but for padding
                assert max(each["bytes"] for each in found) <= stored / world + 4 * KINDS * 8, (case, found)
        for name in answers[0][1]:
            assert all(answer[1][name][0] for answer in answers), (world, name)
            assert sum(answer[1][name][1] for answer in answers) == stored, (world, name)


@pytest.mark.slow
def test_weights_kept_within_each_node_are_restored_too(tmp_path: Path) -> None:
    """ZeRO++'s hpZ: the second copy of the weights, over two "nodes" of two ranks, follows what was restored."""
    case: Case = (3, "bf16", {"deepspeed": {"zero_hpz_partition_size": 2}})
    for answer in run_distributed(findings, 4, str(tmp_path), [case]):
        found = answer[label(case)]
        assert all(found[key] for key in ("moved", "rounded", "restored", "one step later")), found


def failing(ranks: Ranks, folder: str) -> list[tuple[str, bool, bool]]:
    """A restore that fails on the last rank alone, at every stage: what every rank hears; the one before is good."""
    found = []
    for case in CASES:
        engine, again = engine_of(ranks, case), engine_of(ranks, case)
        run_dir = Path(folder, label(case))
        before = save(engine, ranks, run_dir, 0)
        train_one(engine, ranks, 0)
        after = save(engine, ranks, run_dir, 1)
        with stored_at(after) as stored:

            def read(name: str, kind: str, *place: int, stored: Stored = stored) -> torch.Tensor:
                if kind == "exp_avg_sq" and ranks.rank == ranks.world - 1:
                    raise StorageError(f"rank {ranks.rank} cannot read {kind}")
                return stored.read(name, kind, *place)

            with pytest.raises(StorageError) as caught:
                engine.restore(read, stored.shapes, 1)
        restore(engine, before)  # the step before the first update: no moments
        unmoved = holds_rounded(engine, before) and set(held(engine)) == set(held(again))
        for each in (engine, again):
            train_one(each, ranks, 1)
        found.append((str(caught.value), unmoved, equal(held(engine), held(again))))
    return found


@pytest.mark.slow
def test_a_failure_on_one_rank_is_raised_on_all_and_the_one_before_can_follow(tmp_path: Path) -> None:
    for answers in run_distributed(failing, 2, str(tmp_path)):
        assert answers == [("rank 1 cannot read exp_avg_sq", True, True)] * len(CASES)


def test_another_model_is_refused_by_the_name_of_a_weight() -> None:
    model, message = (
        Toy(),
        r"does not fit this model: 2 of its 5 trained weights differ \(first: inner.other,",
    )
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    check_shapes(dict(model.named_parameters()), shapes)
    shapes["inner.other"] = shapes.pop("inner.weight")
    with pytest.raises(StorageError, match=message):
        check_shapes(dict(model.named_parameters()), shapes)
