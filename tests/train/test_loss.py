"""The loss by hand: options over the same targets, fp32 whatever the model computes in, and what becomes of no loss."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema import LossConfig
from data_prep.stream import PackedRow
from tests.end_to_end.commands import call, lines, tiny_run, train
from tests.train.test_batch import CPU, FakeSplit, PerTokenModel
from train.batch import collate
from train.loss import loss_sums

PLAIN = LossConfig()


def by_hand(model: PerTokenModel, split: FakeSplit, loss: LossConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of -log p and of what is minimised over all targets of ``split``, token by token, from the definitions."""
    nll = objective = 0.0 * model.table.sum()  # with a graph even where there is no target
    for row in range(split.rows):
        ids, mask = split.tokens(row)
        for place in range(1, len(ids)):
            if mask[place]:
                logits = model.table[int(ids[place - 1])] + model.places[place - 1]
                z = logits.exp().sum()
                log_p = (logits.exp() / z).log()
                own = -log_p[int(ids[place])]
                smooth = (1 - loss.label_smoothing) * own + loss.label_smoothing * -log_p.mean()
                nll, objective = nll + own, objective + smooth + loss.z_loss * z.log() ** 2
    return nll, objective


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    cut=st.integers(0, 6),
    seed=st.integers(0, 5),
    loss=st.builds(LossConfig, z_loss=st.sampled_from([0.0, 1e-2]), label_smoothing=st.sampled_from([0.0, 0.1])),
)
def test_options_are_exact_per_token_however_the_batch_is_cut(
    lengths: list[int], cut: int, seed: int, loss: LossConfig
) -> None:
    """Value and gradient of the whole global batch, divided once by all its targets, from two micro-batches."""
    split, model = FakeSplit(lengths, seed), PerTokenModel()
    cut = min(cut, len(lengths))
    pieces = [
        collate(
            [PackedRow(samples=((0, row),), tokens=lengths[row]) for row in part],
            [split],  # type: ignore[list-item]
            layout=layout,  # type: ignore[arg-type]
            pad_id=0,
            device=CPU,
        )
        for part, layout in ((range(cut), "flat"), (range(cut, len(lengths)), "padded"))
    ]
    targets = max(1, sum(piece.targets for piece in pieces))
    sums = [loss_sums(model, piece, targets_only=True, loss=loss) for piece in pieces]
    nll, objective = by_hand(model, split, loss)
    torch.testing.assert_close(sum(each.nll for each in sums), nll.detach())
    found = sum(each.objective for each in sums)
    torch.testing.assert_close(found, objective)
    assert isinstance(found, torch.Tensor)
    wanted = torch.autograd.grad(objective / targets, model.table, allow_unused=True, materialize_grads=True)[0]
    torch.testing.assert_close(torch.autograd.grad(found / targets, model.table)[0], wanted)


def test_the_loss_of_a_half_precision_model_is_computed_in_fp32() -> None:
    """Against fp64 on the same bf16 logits: nothing is lost after the head, over many tokens and in the log Z."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(1, 2001, 512, generator=generator) * 6).bfloat16()
    split: Any = FakeSplit([2001])
    batch = collate([PackedRow(samples=((0, 0),), tokens=2001)], [split], layout="flat", pad_id=0, device=CPU)
    sums = loss_sums(
        lambda **_: SimpleNamespace(logits=logits),  # type: ignore[arg-type]
        batch,
        targets_only=False,
        loss=LossConfig(z_loss=1e-4),
    )
    keep = batch.labels[0, 1:] >= 0
    exact = logits[0, :-1][keep].double()
    nll = torch.nn.functional.cross_entropy(exact, batch.labels[0, 1:][keep], reduction="sum")
    objective = nll + 1e-4 * exact.logsumexp(-1).square().sum()
    assert sums.nll.dtype == sums.objective.dtype == torch.float32
    assert float(sums.nll) == pytest.approx(float(nll), rel=1e-6)
    assert float(sums.objective) == pytest.approx(float(objective), rel=1e-6)


def test_without_options_the_objective_is_the_likelihood() -> None:
    split: Any = FakeSplit([5, 3])
    rows = [PackedRow(samples=((0, 0), (0, 1)), tokens=8)]
    sums = loss_sums(
        PerTokenModel(), collate(rows, [split], layout="flat", pad_id=0, device=CPU), targets_only=True, loss=PLAIN
    )
    assert torch.equal(sums.nll, sums.objective.detach())
    assert not sums.nll.requires_grad


@pytest.mark.slow
def test_a_run_of_non_finite_steps_ends_and_names_the_samples(tmp_path: Path) -> None:
    """A learning rate that no weight survives: the first step is applied, every later one is skipped on all ranks."""
    arguments = tiny_run(
        tmp_path, "run", "optim.lr=1e30", "schedule=constant", "schedule.max_steps=20", "loss.z_loss=1e-4"
    )
    code, output = call("data_prep", *arguments)
    assert code == 0, output
    code, output = train(2, *arguments)
    assert code != 0
    assert "the gradients of 10 steps in a row up to step 11 were not finite" in output
    assert f"skip events in {tmp_path / 'run'}/events.jsonl name their uids, files and rows" in output
    skips = [line for line in lines(tmp_path / "run" / "events.jsonl") if line["kind"] == "skip"]
    assert [line["step"] for line in skips] == list(range(2, 12))
    ledger = {line["step"]: line["samples"] for line in lines(tmp_path / "run" / "ledger.jsonl")}
    for line in skips:
        assert len(line["samples"]) == ledger[line["step"]]
        assert {"uid", "file", "row"} == line["samples"][0].keys()
    metrics = [line for line in lines(tmp_path / "run" / "metrics.jsonl") if "train/skipped_steps" in line]
    assert metrics[-1]["train/skipped_steps"] == 10
    assert len({uid["uid"] for uid in itertools.chain(*(line["samples"] for line in skips))}) > 10
