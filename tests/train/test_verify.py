"""The proof can fail: each way of getting the step wrong is put into the production code, and verify must see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from conf.compose import compose
from data_prep.prepare import prepare
from data_prep.shards import open_corpus
from data_prep.tokenizer import load
from tests.distributed import run_distributed
from tests.end_to_end.commands import call, tiny_run
from train import proof as proving
from train.distributed import Ranks
from train.engine import Engine
from train.loop import micro_batches
from train.loss import token_nll_sum
from train.proof import Case, Proof, case_gradients, reference_gradients
from train.verify import ALLOWED, cases, small_run, worst


def per_rank_means(ranks: Ranks) -> Any:
    """Each rank divides by its own targets, and the ranks are averaged."""

    def wrong(proof: Proof, case: Case, ranks: Ranks) -> Any:
        splits, step = proof.plan(case.pack)
        mine = proving.rank_rows(step, ranks.rank, ranks.world)
        own = sum(int(splits[source].targets[row]) for packed in mine for source, row in packed.samples)
        scale = step.targets / (ranks.world * max(1, own))

        def scaled(model: Any, batch: Any, *, targets_only: bool) -> torch.Tensor:
            return token_nll_sum(model, batch, targets_only=targets_only) * scale

        with mock.patch.object(proving, "token_nll_sum", scaled):
            return case_gradients(proof, case, ranks)

    return mock.patch.object(proving, "case_gradients", wrong)


def accumulation_off_by_one(ranks: Ranks) -> Any:
    right = Engine.accumulate

    def wrong(self: Engine, share: torch.Tensor, *, last: bool) -> None:
        right(self, share * 3 / 2, last=last)

    return mock.patch.object(Engine, "accumulate", wrong)


def leaking_samples(ranks: Ranks) -> Any:
    """The bounds between the samples of a row are gone: each sees those before it."""
    right = proving.collate

    def wrong(*args: Any, **kwargs: Any) -> Any:
        batch = right(*args, **kwargs)
        if batch.segments is None:
            return batch
        return dataclasses.replace(batch, segments=batch.segments[[0, -1]], longest=int(batch.segments[-1]))

    return mock.patch.object(proving, "collate", wrong)


def dropped_micro_batch(ranks: Ranks) -> Any:
    def wrong(rows: Sequence[Any], micro_size: int, count: int) -> list[Sequence[Any]]:
        return [*micro_batches(rows, micro_size, count)[1:], ()]

    return mock.patch.object(proving, "micro_batches", wrong)


def rank_zero_only(ranks: Ranks) -> Any:
    right = Engine.accumulate

    def wrong(self: Engine, share: torch.Tensor, *, last: bool) -> None:
        right(self, share if ranks.is_main else share * 0.0, last=last)

    return mock.patch.object(Engine, "accumulate", wrong)


def empty_rows_count(ranks: Ranks) -> Any:
    """A micro-batch without targets adds something to the loss."""

    def wrong(model: Any, batch: Any, *, targets_only: bool) -> torch.Tensor:
        nll = token_nll_sum(model, batch, targets_only=targets_only)
        if batch.targets:
            return nll
        logits = model(**proving_kwargs(batch)).logits
        return nll + logits.float().logsumexp(-1).sum()

    return mock.patch.object(proving, "token_nll_sum", wrong)


def proving_kwargs(batch: Any) -> dict[str, Any]:
    from train.batch import forward_kwargs

    return forward_kwargs(batch)


MUTATIONS = {
    each.__name__: each
    for each in (
        per_rank_means,
        accumulation_off_by_one,
        leaking_samples,
        dropped_micro_batch,
        rank_zero_only,
        empty_rows_count,
    )
}


@contextmanager
def nothing() -> Iterator[None]:
    yield


def all_results(ranks: Ranks, proof: Proof, chosen: list[Case]) -> dict[str, list[tuple[Any, int]]]:
    """Gradients of ``chosen`` without a mutation and under each."""
    found = {}
    for name in ("none", *MUTATIONS):
        with MUTATIONS[name](ranks) if name != "none" else nothing():
            found[name] = [proving.case_gradients(proof, case, ranks) for case in chosen]
    return found


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    root = tmp_path_factory.mktemp("verify")
    cfg = compose(tiny_run(root, "run"))
    corpus = open_corpus(prepare(cfg, argv=[]))
    tokenizer = load(str(corpus.path / "tokenizer"))
    small = small_run(cfg, root / "small")
    return Proof(small, corpus.path, tokenizer.pad_id, tokenizer.eos_id, tokenizer.vocab_size)


def test_every_mutation_is_caught_and_nothing_else(proof: Proof) -> None:
    wanted = reference_gradients(proof)
    targets = proof.plan("none")[1].targets
    chosen = [case for case in cases("exact") if case.world == 2]
    for name, results in run_distributed(all_results, 2, proof, chosen)[0].items():
        caught = {
            case.label: worst(gradients, wanted)[0] > ALLOWED or fed != targets
            for case, (gradients, fed) in zip(chosen, results, strict=True)
        }
        assert any(caught.values()) == (name != "none"), (name, caught)


@pytest.mark.slow
def test_the_command_says_that_it_holds(tmp_path: Path) -> None:
    code, output = call("data_prep", *tiny_run(tmp_path, "run"))
    assert code == 0, output
    code, output = call("train.verify", *tiny_run(tmp_path, "run", "tuning=lora", "zero=3"), timeout=240)
    assert code == 0, output
    assert output.count("equal") >= len(cases("exact"))
    assert "holds" in output
