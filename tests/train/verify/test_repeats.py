"""The start-up self-test of ``compute.deterministic``: it passes where bits repeat, and names what does not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conf.errors import InternalError
from conf.schema import BatchConfig, ComputeConfig, ModelConfig, ZeroConfig
from data_prep.stream.stream import Stream
from tests.distributed import run_distributed
from tests.tiny import tiny_config, tiny_run
from tests.train.rows import fake_split
from train.assembly import model_and_engine, objective_for
from train.attention import Attention
from train.attention.repeating import repeats
from train.batches.feed import Feed
from train.model.build import TokenIds
from train.objectives import Sums
from train.ranks.group import Ranks
from train.verify import repeats as module
from train.verify.repeats import check_repeats, updates_alike


def run_of(ranks: Ranks, folder: str) -> Any:
    """As much of a run as the self-test reads, with a real model, engine and stream."""
    config = {key: value for key, value in tiny_config("llama").items() if key != "vocab_size"}
    model = ModelConfig(config=config, init="random", dtype="fp32", tokenizer="train")
    base = tiny_run(Path(folder), model, seq_len=40)
    cfg = SimpleNamespace(**vars(base))
    cfg.zero, cfg.batch = ZeroConfig(stage=2, overlap_comm=False), BatchConfig(global_size=4, micro_size=1)
    cfg.compute = ComputeConfig(deterministic=True, reproducible=True, threads=1)
    ids = TokenIds(64, pad_id=1, eos_id=0)
    built, engine = model_and_engine(cfg, ranks, ids)  # type: ignore[arg-type]
    split = fake_split(40, seed=3, name="tiny")
    said: list[Any] = []
    return SimpleNamespace(
        cfg=cfg,
        ranks=ranks,
        engine=engine,
        attention=built.attention,
        stream=Stream({"tiny": split}, cfg.data, seed=0, global_size=4),
        feed=Feed([split], built.attention.layout, ids.pad_id, ranks, 1, dealt="turns"),
        objective=objective_for(cfg, ranks, ids),  # type: ignore[arg-type]
        model_config=built.model.config.to_dict(),  # type: ignore[operator,union-attr]
        state=SimpleNamespace(step=0),
        tracker=SimpleNamespace(event=lambda kind, **what: said.append((kind, what)), note=said.append),
        said=said,
    )


class Restless:
    """An objective whose second pass differs in the last bit, on one rank."""

    def __init__(self, inner: Any, rank: int) -> None:
        self.inner, self.rank, self.passes = inner, rank, 0

    def denominator(self, step: Any) -> float:
        return float(self.inner.denominator(step))

    def sums(self, model: Any, batch: Any) -> Sums:
        self.passes += 1
        found = self.inner.sums(model, batch)
        factor = 1.0 + 2**-23 if self.rank == 1 and self.passes == 2 else 1.0
        return Sums(found.objective * factor, found.reported)


def looked_at(ranks: Ranks, folder: str) -> Any:
    run = run_of(ranks, folder)
    before = torch.get_rng_state()
    check_repeats(run)
    same_state = torch.equal(before, torch.get_rng_state())
    first = run.feed.batch(next(run.stream).rows[:1]).uids
    run.objective = Restless(run.objective, ranks.rank)
    try:
        check_repeats(run)
        error = ""
    except InternalError as refusal:
        error = str(refusal)
    return run.said, same_state, first, error


@pytest.mark.slow
def test_a_run_that_repeats_is_told_and_one_that_does_not_is_ended_on_every_rank(tmp_path: Path) -> None:
    for said, same_state, first, error in run_distributed(looked_at, 2, str(tmp_path)):
        (kind, what), note = said
        assert (kind, what["step"], what["seconds"] > 0) == ("repeats", 0, True)
        assert what["gradients"] > 20
        assert "two passes gave the same bits of" in note
        assert same_state
        assert first
        assert error.startswith(
            "compute.deterministic: the self-test failed on rank 1 (cpu): two passes over one micro"
        )
        assert "first in the loss" in error
        assert "debug=deterministic" in error
        assert "\n" not in error


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_that_repeats_passes(implementation: str) -> None:
    attention = Attention(implementation, implementation, "padded")
    assert repeats(attention, dtype=torch.float32, device=torch.device("cpu"), capped=False)


def test_attention_that_does_not_repeat_is_found_even_if_it_seldom_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain, calls = ALL_ATTENTION_FUNCTIONS["sdpa"], []

    def seldom(*inputs: Any, **options: Any) -> Any:
        calls.append(1)
        out, weights = plain(*inputs, **options)
        return (out * (1.0 + 2**-23) if len(calls) == 29 else out), weights

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", seldom)
    attention = Attention("sdpa", "sdpa", "padded")
    assert not repeats(attention, dtype=torch.float32, device=torch.device("cpu"), capped=False)
    assert len(calls) == 29


def test_an_update_that_depends_on_the_cut_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert updates_alike(torch.device("cpu"))

    class Torn(torch.optim.AdamW):
        """Treats the last element of every tensor differently, as a kernel with a tail of its own may."""

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data[-1] *= 1.0 + 2**-23

    monkeypatch.setattr(module.torch.optim, "AdamW", Torn)
    assert not updates_alike(torch.device("cpu"))
