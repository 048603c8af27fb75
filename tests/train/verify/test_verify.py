"""The proof can fail: each way of getting the step wrong is put into the production code, and verify must see it."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from conf.compose import compose
from conf.errors import ConfigError
from data_prep.corpus.shards import open_corpus
from data_prep.prepare import prepare
from data_prep.stream.stream import rank_rows
from data_prep.tokenizer.tokenizer import load_tokenizer
from tests.distributed import run_distributed
from tests.end_to_end.commands import call, tiny_run
from train.batches import feed as feeding
from train.batches.batch import Predicted, forward_kwargs
from train.batches.feed import Feed
from train.engine import Engine
from train.engine import settings as engine_settings
from train.model.build import TokenIds
from train.objectives import Sums
from train.objectives.sft import Sft
from train.ranks.group import Ranks
from train.verify import proof as proving
from train.verify.comparisons import ALLOWED, TOKENS, allowed_in_fp32, cases, compare, proof_of, small_run, verdict
from train.verify.proof import Case, Proof, case_gradients, reference_gradients


def per_rank_means(ranks: Ranks) -> Any:
    """Each rank divides by its own targets, and the ranks are averaged."""

    def wrong(proof: Proof, case: Case, ranks: Ranks) -> Any:
        splits, step = proof.plan(case.pack)
        mine = rank_rows(step, ranks.rank, ranks.world)
        own = sum(int(splits[source].targets[row]) for packed in mine for source, row in packed.samples)
        scale = step.targets / (ranks.world * max(1, own))

        right = Sft.sums

        def scaled(self: Sft, *args: Any) -> Sums:
            sums = right(self, *args)
            return dataclasses.replace(sums, objective=sums.objective * scale)

        with mock.patch.object(Sft, "sums", scaled):
            return case_gradients(proof, case, ranks)

    return mock.patch.object(proving, "case_gradients", wrong)


def accumulation_off_by_one(ranks: Ranks) -> Any:
    """The division by the number of micro-batches is undone with one too few."""
    right = Engine.accumulate

    def wrong(self: Engine, share: torch.Tensor, *, last: bool) -> None:
        count = self.module.gradient_accumulation_steps()
        right(self, share * (max(1, count - 1) / count), last=last)

    return mock.patch.object(Engine, "accumulate", wrong)


def leaking_samples(ranks: Ranks) -> Any:
    """The bounds between the samples of a packed row are gone: each sees those before it."""
    right = feeding.collate

    def wrong(rows: Any, *args: Any, **kwargs: Any) -> Any:
        batch = right(rows, *args, **kwargs)
        if batch.segments is None or not batch.tokens:
            return batch
        pieces = [right([row], *args, **kwargs) for row in rows]
        bounds = list(itertools.accumulate((piece.tokens for piece in pieces), initial=0))
        longest = max(piece.tokens for piece in pieces)
        return dataclasses.replace(batch, segments=torch.tensor(bounds, dtype=torch.int32), longest=longest)

    return mock.patch.object(feeding, "collate", wrong)


def dropped_micro_batch(ranks: Ranks) -> Any:
    right = Feed.batches

    def wrong(self: Feed, step: Any) -> list[Any]:
        batches = list(right(self, step))
        return [*batches[1:], self.batch(())] if len(batches) > 1 else batches

    return mock.patch.object(Feed, "batches", wrong)


def rank_zero_only(ranks: Ranks) -> Any:
    right = Engine.accumulate

    def wrong(self: Engine, share: torch.Tensor, *, last: bool) -> None:
        right(self, share if ranks.is_main else share * 0.0, last=last)

    return mock.patch.object(Engine, "accumulate", wrong)


def empty_rows_count(ranks: Ranks) -> Any:
    """A micro-batch without targets adds something to the loss."""

    right = Sft.sums

    def wrong(self: Sft, model: Any, batch: Any) -> Sums:
        if batch.targets:
            return right(self, model, batch)
        sum_of_z = model(**forward_kwargs(batch)).logits.float().logsumexp(-1).sum()
        return Sums(sum_of_z, {"loss": sum_of_z.detach()})

    return mock.patch.object(Sft, "sums", wrong)


def slices_that_do_not_look_ahead(ranks: Ranks) -> Any:
    """The last token of a slice predicts nothing: the target is in the next one."""
    right = feeding.share

    def wrong(batch: Any, ranks: Ranks) -> Any:
        own = right(batch, ranks)
        if own is batch:
            return batch
        before = own.predicted.places < own.input_ids.shape[1] - 1
        return dataclasses.replace(own, predicted=Predicted(own.predicted.places[before], own.predicted.ids[before]))

    return mock.patch.object(feeding, "share", wrong)


def slices_that_attend_alone(ranks: Ranks) -> Any:
    """Each rank computes attention over its own slice of the row."""
    right = feeding.share

    def wrong(batch: Any, ranks: Ranks) -> Any:
        own = right(batch, ranks)
        if own is batch:
            return batch
        length = own.input_ids.shape[1]
        bounds = torch.tensor([0, length], dtype=torch.int32)
        return dataclasses.replace(own, segments=bounds, longest=length, keys=None, exchange=None)

    return mock.patch.object(feeding, "share", wrong)


MUTATIONS = {
    per_rank_means: "the sum over ranks",
    accumulation_off_by_one: "accumulation over micro-batches",
    leaking_samples: "packed samples that do not see one another",
    dropped_micro_batch: "accumulation over micro-batches",
    rank_zero_only: "the sum over ranks",
    empty_rows_count: "micro-batches without a row",
    slices_that_do_not_look_ahead: "slices of a row that meet in attention",
    slices_that_attend_alone: "slices of a row that meet in attention",
}
"""Mutation -> what the first comparison that differs says it adds."""


def all_results(ranks: Ranks, proof: Proof, chosen: list[Case]) -> dict[str, list[tuple[Any, int]]]:
    """Gradients of ``chosen`` without a mutation and under each."""
    found = {"none": [proving.case_gradients(proof, case, ranks) for case in chosen]}
    for mutation in MUTATIONS:
        with mutation(ranks):
            found[mutation.__name__] = [proving.case_gradients(proof, case, ranks) for case in chosen]
    return found


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    root = tmp_path_factory.mktemp("verify")
    cfg = compose(tiny_run(root, "run"))
    corpus = open_corpus(prepare(cfg, argv=[]))
    tokenizer = load_tokenizer(str(corpus.path / "tokenizer"))
    small = small_run(cfg, root / "small")
    return Proof(small, corpus.path, TokenIds.of(tokenizer))


@pytest.mark.slow
@pytest.mark.timeout(900)  # forty comparisons on two ranks: a busy machine takes several minutes
def test_every_mutation_is_caught_and_named(proof: Proof) -> None:
    chosen = cases("exact", sequence_parallel=2)
    found: dict[str, list[tuple[Any, int]]] = {}
    for world in (1, 2):
        mine = [case for case in chosen if case.world == world]
        for name, results in run_distributed(all_results, world, proof, mine, timeout=400)[0].items():
            found.setdefault(name, []).extend(results)
    comparisons, plain = compare(proof, chosen, found.pop("none"))
    assert all(each.holds for each in comparisons), comparisons
    assert "holds: a step is one function" in verdict(proof.cfg, comparisons, plain)
    for mutation, added in MUTATIONS.items():
        comparisons, plain = compare(proof, chosen, found[mutation.__name__])
        sentence = verdict(proof.cfg, comparisons, plain)
        assert re.search(r"DOES NOT HOLD \(ZeRO 2, full, fp32, allowed 1\.\de-06\)", sentence), mutation
        assert f"which adds {added}; " in sentence, (mutation.__name__, sentence)
        assert ("targets were fed" in sentence) == (mutation is dropped_micro_batch), sentence


def rounded_results(ranks: Ranks, proofs: list[Proof], chosen: list[Case]) -> list[list[list[tuple[Any, int]]]]:
    """Gradients of ``chosen`` for each of ``proofs``: as the settings say, and with a reduction in bf16."""
    right = [[proving.case_gradients(proof, case, ranks) for case in chosen] for proof in proofs]
    with mock.patch.object(engine_settings, "_reduced_in", return_value="bf16"):
        return [right, [[proving.case_gradients(proof, case, ranks) for case in chosen] for proof in proofs]]


@pytest.mark.slow
def test_a_reduction_in_bf16_is_caught(proof: Proof) -> None:
    """It is too near for the bounds, which allow what bf16 costs elsewhere."""
    half = dataclasses.replace(proof.cfg, model=dataclasses.replace(proof.cfg.model, dtype="bf16"))
    proofs = [
        dataclasses.replace(proof, cfg=dataclasses.replace(half, zero=dataclasses.replace(half.zero, stage=stage)))
        for stage in (1, 2, 3)
    ]
    chosen = [case for case in cases("exact") if case.world == 2]
    right, wrong = run_distributed(rounded_results, 2, proofs, chosen, timeout=400)[0]
    for each, good, bad in zip(proofs, right, wrong, strict=True):
        comparisons, plain = compare(each, chosen, good)
        assert all(comparison.holds for comparison in comparisons), verdict(each.cfg, comparisons, plain)
        assert {comparison.word for comparison in comparisons} == {"near"}
        sentence = verdict(each.cfg, *compare(each, chosen, bad))
        assert "the first case that differs is '2 ranks', which adds the sum over ranks; " in sentence, sentence
        assert sentence.endswith("every number of the gradient is rounded to bf16 after it was added up")


def test_long_rows_may_round_more(proof: Proof) -> None:
    """The bound grows with the root of the tokens that a gradient sums, and is nowhere near a mistake's size.

    Here it is twice torch's own rounding, about 1e-6: its additions differ with the samples and the machine.
    """
    gradients = reference_gradients(proof)
    off = {name: value * (1 + 1.5e-6) for name, value in gradients.items()}
    splits, step = proof.plan("none")
    for tokens, allowed, holds in ((step.tokens, 1e-6, False), (4 * TOKENS, 2e-6, True)):
        longer = splits, dataclasses.replace(step, tokens=tokens)
        with mock.patch.object(Proof, "plan", lambda *_, longer=longer: longer):
            (found,), _ = compare(proof, cases("exact")[:1], [(off, step.targets)])
        assert (found.allowed, found.holds) == (pytest.approx(allowed, rel=0.35), holds)


def test_the_rounding_of_plain_torch_is_allowed_twice_and_no_more(proof: Proof) -> None:
    gradients = reference_gradients(proof)
    assert allowed_in_fp32(proof, gradients, largest=1e-6, allowed=1e-6) == 1e-6  # fp64 is not asked
    assert 1e-7 < allowed_in_fp32(proof, gradients, largest=1.0, allowed=0.0) < 1.5 * ALLOWED["fp32"]
    off = {name: value * 1.001 for name, value in gradients.items()}
    (found,), _ = compare(proof, cases("exact")[:1], [(off, proof.plan("none")[1].targets)])
    assert not found.holds


def test_what_cannot_be_proved_here_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = compose(tiny_run(tmp_path, "run", "attention=flash3", "model.dtype=bf16"))
    prepare(cfg, argv=[])
    assert proof_of(cfg, [], tmp_path, "fp32").cfg.attention.backend == "packed"
    assert "attention=flash3 runs only on GPUs in bf16, so attention=packed is verified" in capsys.readouterr().out
    rounding = compose(tiny_run(tmp_path, "run", "model.dtype=bf16", "zero=2", "zero.reduce_dtype=bf16"))
    for precision, reduced in (("fp32", "fp32"), ("bf16", "bf16")):
        assert proof_of(rounding, [], tmp_path, precision).cfg.zero.reduce_dtype == reduced  # type: ignore[arg-type]
        said = "zero.reduce_dtype=bf16 rounds the sum over ranks, so the exact step is verified with fp32 instead"
        assert (said in capsys.readouterr().out) == (precision == "fp32")
    stage0 = compose(tiny_run(tmp_path, "run", "zero=0"))
    with pytest.raises(ConfigError, match="use zero=1 or precision=fp32"):
        proof_of(stage0, [], tmp_path, "bf16")


@pytest.mark.slow
def test_the_command_says_that_it_holds(tmp_path: Path) -> None:
    code, output = call("data_prep", *tiny_run(tmp_path, "run"))
    assert code == 0, output
    code, output = call("train.verify", *tiny_run(tmp_path, "run", "tuning=lora", "zero=3"), timeout=240)
    assert code == 0, output
    assert output.count("equal") >= len(cases("exact"))
    assert "holds" in output
    code, output = call("train.verify", *tiny_run(tmp_path, "run"), "precision=fp64")
    message = "corral: precision=fp64 is unknown; give precision=fp32 or precision=bf16"
    assert (code, output.strip()) == (78, message)
