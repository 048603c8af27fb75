"""The engine against plain torch: gradients, steps, clipping, skips; checkpoints across ranks and stages."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conf.schema import BatchConfig, ModelConfig, OptimConfig, ZeroConfig
from tests.distributed import run_distributed
from train import checkpoint
from train.checkpoint.check import verified
from train.checkpoint.layout import Stored
from train.engine import Engine, FragmentHook, deepspeed_settings
from train.fingerprint import fingerprint
from train.ranks.group import Ranks

GLOBAL, WIDTH, VOCAB = 6, 12, 19
OPTIM = OptimConfig(lr=0.05, weight_decay=0.1, clip=0.5)


class Toy(nn.Module):
    """Tied embedding, a matrix, a norm: every kind of parameter a language model has, small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(torch.tanh(self.inner(self.embed(ids)))))  # type: ignore[no-any-return]


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def row(step: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged rows: the mean of per-rank means would be far off."""
    generator = torch.Generator().manual_seed(100 * step + index)
    length = int(torch.randint(1, 9, (1,), generator=generator))
    return tuple(torch.randint(0, VOCAB, (length,), generator=generator) for _ in range(2))  # type: ignore[return-value]


def nll(model: nn.Module, step: int, index: int) -> torch.Tensor:
    ids, labels = row(step, index)
    return nn.functional.cross_entropy(model(ids).float(), labels, reduction="sum")


def targets(step: int) -> int:
    return sum(len(row(step, index)[0]) for index in range(GLOBAL))


def feed(engine: Engine, ranks: Ranks, step: int, micro: int) -> None:
    """Forward and backward of this rank's rows of ``step``."""
    slots = -(-GLOBAL // ranks.world)
    mine = [index for index in range(ranks.rank * slots, (ranks.rank + 1) * slots) if index < GLOBAL]
    accumulation = -(-GLOBAL // (ranks.world * micro))
    for turn in range(accumulation):
        rows = mine[turn * micro : (turn + 1) * micro]
        losses = [nll(engine.module, step, index) for index in rows]
        # Sharded forwards are collective: every rank makes as many.
        losses += [0.0 * engine.module(torch.zeros(1, dtype=torch.long)).sum() for _ in range(micro - len(rows))]
        engine.accumulate(sum(losses) / targets(step), last=turn == accumulation - 1)  # type: ignore[arg-type]


def one_step(engine: Engine, ranks: Ranks, step: int, micro: int) -> dict[str, torch.Tensor]:
    feed(engine, ranks, step, micro)
    return engine.gradients()


def make_engine(
    ranks: Ranks,
    stage: int,
    micro: int,
    dtype: str = "fp32",
    *,
    model: nn.Module | None = None,
    hooks: Sequence[FragmentHook] = (),
    **zero_settings: Any,
) -> Engine:
    model = (Toy() if model is None else model).to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    zero = ZeroConfig(stage=stage, **{"persistence_threshold": 0, **zero_settings})  # type: ignore[arg-type]
    settings = deepspeed_settings(
        model=ModelConfig(path="x", dtype=dtype),  # type: ignore[arg-type]
        zero=zero,
        optim=OPTIM,
        batch=BatchConfig(global_size=GLOBAL, micro_size=micro),
        world=ranks.world,
        on_cpu=True,
    )
    return Engine(model, named(model), settings=settings, optim=OPTIM, zero=zero, ranks=ranks, hooks=hooks)


def reference() -> tuple[list[dict[str, torch.Tensor]], list[float], dict[str, torch.Tensor]]:
    """Plain torch: gradients and norm of each step, and the weights after the last."""
    model = Toy()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": OPTIM.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=OPTIM.lr, betas=(OPTIM.betas[0], OPTIM.betas[1]), eps=OPTIM.eps)
    gradients, norms = [], []
    for step in range(3):
        optimizer.zero_grad()
        (sum(nll(model, step, index) for index in range(GLOBAL)) / targets(step)).backward()  # type: ignore[union-attr]
        gradients.append({name: p.grad.clone() for name, p in named(model).items()})  # type: ignore[union-attr]
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip)))
        optimizer.step()
    return gradients, norms, {name: p.detach().clone() for name, p in named(model).items()}


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm().clamp(min=1e-12))


def compare(
    ranks: Ranks, cases: list[tuple[int, int, str]], folder: str, passed_on: Any = None
) -> dict[tuple[int, int, str], Any]:
    """For every (stage, micro, offload): worst gradient and weight errors, norms; the fingerprint of the end."""
    gradients, norms, weights = reference()
    results = {}
    for stage, micro, offload in cases:
        engine = make_engine(ranks, stage, micro, offload=offload, deepspeed=passed_on or {})
        if passed_on:  # or the test would pass with a key that reached nobody
            groups = {p.ds_secondary_tensor_group_size for p in engine.parameters.values()}  # type: ignore[attr-defined]
            assert groups == {passed_on["zero_hpz_partition_size"]}
        worst = norm_error = 0.0
        for step in range(3):
            found = one_step(engine, ranks, step, micro)
            worst = max(worst, *(relative(found[name], gradients[step][name]) for name in gradients[step]))
            outcome = engine.step(OPTIM.lr)
            norm_error = max(norm_error, abs(outcome.grad_norm / norms[step] - 1))
        run_dir = Path(folder, f"{ranks.world}-{stage}-{micro}-{offload}")
        published = checkpoint.save(run_dir, engine, ranks=ranks, attempt=0, step=3, extra={}, keep=2)
        assert not isinstance(published, str), published
        stored = checkpoint.read_weights(published.path)
        verified(published.path)
        results[stage, micro, offload] = {
            "gradient": worst,
            "norm": norm_error,
            "weight": max(relative(stored[name], weights[name]) for name in weights),
        }
    return results


CASES = [
    (0, 1, "none"),
    (1, 2, "none"),
    (2, 1, "none"),
    (2, 4, "none"),
    (3, 1, "none"),
    (3, 2, "none"),
    (2, 2, "optimizer"),
]


@pytest.mark.parametrize("world", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_steps_equal_plain_torch(world: int, tmp_path: Path) -> None:
    for case, errors in run_distributed(compare, world, CASES, str(tmp_path))[0].items():
        assert errors["gradient"] <= 1e-6, (case, errors)
        assert errors["norm"] <= 1e-6, (case, errors)
        assert errors["weight"] <= 1e-5, (case, errors)


@pytest.mark.slow
def test_weights_kept_within_each_node_change_no_step(tmp_path: Path) -> None:
    """ZeRO++'s hpZ over two "nodes" of two ranks, several micro-batches a step."""
    passed_on = {"zero_hpz_partition_size": 2}
    for case, errors in run_distributed(compare, 4, [(3, 1, "none")], str(tmp_path), passed_on)[0].items():
        assert errors["gradient"] <= 1e-6, (case, errors)
        assert errors["norm"] <= 1e-6, (case, errors)
        assert errors["weight"] <= 1e-5, (case, errors)


def continue_from(ranks: Ranks, folder: str, plans: list[tuple[int, str, str | None, str]]) -> dict[str, str]:
    """Run step 0-1, save; continue in a new engine with steps 2-3; also continue from other runs' checkpoints."""
    prints = {}
    for stage, dtype, source, label in plans:
        run_dir = Path(folder, label)
        engine = make_engine(ranks, stage, 1, dtype)
        start = 0
        if source:
            path = Path(folder, source, "checkpoints", "step-00000002")
            stored = Stored(path, json.loads((path / "MANIFEST.json").read_text()))
            with stored:
                engine.restore(stored.read, stored.shapes, stored.manifest["optimizer_steps"])
            start = 2
        for step in range(start, 4):
            one_step(engine, ranks, step, 1)
            engine.step(OPTIM.lr)
            if step == 1:
                checkpoint.save(run_dir, engine, ranks=ranks, attempt=0, step=2, extra={}, keep=4)
        published = checkpoint.save(run_dir, engine, ranks=ranks, attempt=0, step=4, extra={}, keep=4)
        assert not isinstance(published, str), published
        prints[label] = fingerprint(published.path)
    return prints


def test_resume_is_bitwise_at_the_same_world_size_and_close_at_any_other(tmp_path: Path) -> None:
    plans: list[tuple[int, str, str | None, str]] = []
    for stage, dtype in [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]:
        plans += [(stage, dtype, None, f"{stage}{dtype}"), (stage, dtype, f"{stage}{dtype}", f"{stage}{dtype}-again")]
    prints = run_distributed(continue_from, 2, str(tmp_path), plans)[0]
    for stage, dtype, source, label in plans:
        if source:
            assert prints[label] == prints[source], (stage, dtype)
    others: list[tuple[int, str, str | None, str]] = [
        (3, "fp32", "2fp32", "2-to-3"),
        (1, "fp32", "3fp32", "3-to-1"),
        (0, "fp32", "2fp32", "2-to-0"),
        (2, "bf16", "3bf16", "b3-to-2"),
    ]
    run_distributed(continue_from, 3, str(tmp_path), others)
    weights = {
        label: checkpoint.read_weights(tmp_path / label / "checkpoints" / "step-00000004")
        for *_, label in plans + others
    }
    for label, source, bound in [
        ("2-to-3", "2fp32", 1e-5),
        ("3-to-1", "3fp32", 1e-5),
        ("2-to-0", "2fp32", 1e-5),
        ("b3-to-2", "3bf16", 2e-2),
    ]:
        for name, value in weights[source].items():
            assert relative(weights[label][name], value) <= bound, (label, name)


def repeated(ranks: Ranks, stages: list[int], count: int) -> list[tuple[float, float, float]]:
    """The gradient of one bf16 micro-batch and of ``count`` equal shares of it: relative difference, and both norms.

    A share is a power of two smaller, so every rounding in bf16 is the same: what is left is how they are summed.
    """
    found = []
    for stage in stages:
        engine = make_engine(ranks, stage, 1, "bf16")
        engine.accumulate(nll(engine.module, 0, ranks.rank), last=True)
        once, before = engine.gradients(), engine.step(OPTIM.lr).grad_norm
        engine = make_engine(ranks, stage, 1, "bf16")
        for turn in range(count):
            engine.accumulate(nll(engine.module, 0, ranks.rank) / count, last=turn == count - 1)
        summed, after = engine.gradients(), engine.step(OPTIM.lr).grad_norm
        found.append((max(relative(summed[name], once[name]) for name in once), before, after))
    return found


def test_many_micro_batches_are_summed_in_fp32_and_all_ranks_know_the_norm() -> None:
    """In bf16 the sum would be rounded to 8 bits at each of 64 additions."""
    first, second = run_distributed(repeated, 2, [1, 2, 3], 64)
    assert first == second
    for error, before, after in first:
        assert error <= 1e-6
        assert after == pytest.approx(before, rel=1e-6)


def skip_on_nan(ranks: Ranks, stages: list[int]) -> list[tuple[bool, float]]:
    found = []
    for stage in stages:
        engine = make_engine(ranks, stage, 1)
        one_step(engine, ranks, 0, 1)
        engine.step(OPTIM.lr)
        before = {f.name: f.weight.clone() for f in engine.fragments()}
        for turn in range(-(-GLOBAL // ranks.world)):
            bad = nll(engine.module, 0, 0) * (math.nan if ranks.rank == 0 else 1.0)
            engine.accumulate(bad, last=turn == -(-GLOBAL // ranks.world) - 1)
        outcome = engine.step(OPTIM.lr)
        change = max((float((f.weight - before[f.name]).abs().max()) for f in engine.fragments()), default=0.0)
        one_step(engine, ranks, 1, 1)
        assert not engine.step(OPTIM.lr).skipped
        assert engine.optimizer_steps == 2
        found.append((outcome.skipped, change))
    return found


def test_a_nan_on_one_rank_skips_the_step_on_all() -> None:
    for results in run_distributed(skip_on_nan, 2, [0, 1, 2, 3]):
        assert results == [(True, 0.0)] * 4
