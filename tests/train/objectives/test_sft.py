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

from conf.schema import SftObjective
from data_prep.stream.stream import PackedRow
from tests.end_to_end.commands import call, lines, tiny_run, train
from tests.tiny import tiny_model
from tests.train.batches.test_batch import VOCAB, FakeSplit, PerTokenModel
from train.batches.collate import collate
from train.objectives.sft import Sft

PLAIN = SftObjective()


def by_hand(model: PerTokenModel, split: FakeSplit, loss: SftObjective) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sums of -log p and of what is minimised over all targets of ``split``, token by token, from the
    definitions."""
    nll = objective = 0.0 * model.table.sum()  # with a graph even where there is no target
    for row in range(split.rows):
        (ids, mask), weights = split.tokens(row), split.weights(row)
        for place in range(1, len(ids)):
            if mask[place]:
                logits = model.table[int(ids[place - 1])] + model.places[place - 1]
                z = logits.exp().sum()
                log_p = (logits.exp() / z).log()
                own = -log_p[int(ids[place])]
                smooth = (1 - loss.label_smoothing) * own + loss.label_smoothing * -log_p.mean()
                weight = 1.0 if weights is None else float(weights[place])
                nll, objective = nll + weight * own, objective + weight * (smooth + loss.z_loss * z.log() ** 2)
    return nll, objective


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    cut=st.integers(0, 6),
    seed=st.integers(0, 5),
    weighted=st.booleans(),
    loss=st.builds(SftObjective, z_loss=st.sampled_from([0.0, 1e-2]), label_smoothing=st.sampled_from([0.0, 0.1])),
)
def test_options_are_exact_per_token_however_the_batch_is_cut(
    lengths: list[int], cut: int, seed: int, weighted: bool, loss: SftObjective
) -> None:
    """Value and gradient of the whole global batch, divided once by all its weights, from two micro-batches."""
    split, model = FakeSplit(lengths, seed, weighted=weighted), PerTokenModel()
    cut = min(cut, len(lengths))
    pieces = [
        collate(
            [PackedRow(samples=((0, row),), tokens=lengths[row]) for row in part],
            [split],  # type: ignore[list-item]
            layout=layout,  # type: ignore[arg-type]
            pad_id=0,
        )
        for part, layout in ((range(cut), "flat"), (range(cut, len(lengths)), "padded"))
    ]
    weight = sum(piece.weight for piece in pieces) or 1.0
    if not weighted:
        assert weight == max(1, sum(piece.targets for piece in pieces))
    sums = [Sft(loss, targets_only=True).sums(model, piece) for piece in pieces]
    nll, objective = by_hand(model, split, loss)
    torch.testing.assert_close(sum(each.reported["loss"] for each in sums), nll.detach())
    found = sum(each.objective for each in sums)
    torch.testing.assert_close(found, objective)
    assert isinstance(found, torch.Tensor)
    wanted = torch.autograd.grad(objective / weight, model.table, allow_unused=True, materialize_grads=True)[0]
    torch.testing.assert_close(torch.autograd.grad(found / weight, model.table)[0], wanted)


def test_the_loss_of_a_half_precision_model_is_computed_in_fp32() -> None:
    """Against fp64 on the same bf16 logits: nothing is lost after the head, over many tokens and in the log Z."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(1, 2001, 512, generator=generator) * 6).bfloat16()
    split: Any = FakeSplit([2001])
    batch = collate([PackedRow(samples=((0, 0),), tokens=2001)], [split], layout="flat", pad_id=0)
    model: Any = lambda **_: SimpleNamespace(logits=logits)  # noqa: E731
    sums = Sft(SftObjective(z_loss=1e-4), targets_only=False).sums(model, batch)
    keep = batch.labels[0, 1:] >= 0
    exact = logits[0, :-1][keep].double()
    nll = torch.nn.functional.cross_entropy(exact, batch.labels[0, 1:][keep], reduction="sum")
    objective = nll + 1e-4 * exact.logsumexp(-1).square().sum()
    assert sums.reported["loss"].dtype == sums.objective.dtype == torch.float32
    assert float(sums.reported["loss"]) == pytest.approx(float(nll), rel=1e-6)
    assert float(sums.objective) == pytest.approx(float(objective), rel=1e-6)


def test_without_options_the_objective_is_the_likelihood() -> None:
    split: Any = FakeSplit([5, 3])
    rows = [PackedRow(samples=((0, 0), (0, 1)), tokens=8)]
    batch = collate(rows, [split], layout="flat", pad_id=0)
    sums = Sft(PLAIN, targets_only=True).sums(PerTokenModel(), batch)
    assert torch.equal(sums.reported["loss"], sums.objective.detach())
    assert not sums.reported["loss"].requires_grad


def test_weights_of_one_are_bit_for_bit_no_weights() -> None:
    """In the chunked head, over which training goes; a corpus without other weights has no column of them at all."""
    split: Any = FakeSplit([9, 12, 7], weighted=True)
    split._weights = [mask.astype("float32") for mask in split._masks]
    plain: Any = FakeSplit([9, 12, 7])
    rows = [PackedRow(samples=((0, 0), (0, 1), (0, 2)), tokens=28)]
    model = tiny_model("llama", vocab_size=VOCAB)
    found = []
    for each in (split, plain):
        batch = collate(rows, [each], layout="flat", pad_id=0)
        sums = Sft(SftObjective(z_loss=1e-2, label_smoothing=0.1), targets_only=True).sums(model, batch)
        found.append((sums, torch.autograd.grad(sums.objective, list(model.parameters()), allow_unused=True)))
    (one, gradients), (other, expected) = found
    assert torch.equal(one.objective, other.objective)
    assert torch.equal(one.reported["loss"], other.reported["loss"])
    for mine, wanted in zip(gradients, expected, strict=True):
        assert (mine is None and wanted is None) or torch.equal(mine, wanted)


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
    assert "10 of the last 11 steps made no update, the last one because the loss or a gradient of step 11" in output
    assert "the run cannot go back: nothing was saved before step 2" in output
    assert f"in {tmp_path / 'run' / 'incidents'} and in the skip events of {tmp_path / 'run'}/events.jsonl" in output
    skips = [line for line in lines(tmp_path / "run" / "events.jsonl") if line["kind"] == "skip"]
    assert [line["step"] for line in skips] == list(range(2, 12))
    ledger = {line["step"]: line["samples"] for line in lines(tmp_path / "run" / "ledger.jsonl")}
    for line in skips:
        assert len(line["samples"]) == ledger[line["step"]]
        assert {"uid", "file", "row"} == line["samples"][0].keys()
    metrics = [line for line in lines(tmp_path / "run" / "metrics.jsonl") if "train/skipped_steps" in line]
    assert metrics[-1]["train/skipped_steps"] == 10
    assert len({uid["uid"] for uid in itertools.chain(*(line["samples"] for line in skips))}) > 10
