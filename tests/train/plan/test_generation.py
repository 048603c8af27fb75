"""What answers cost under ZeRO-3: by hand, refused above ten minutes, and the command that answers instead."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conf.compose import compose
from conf.errors import ConfigError
from conf.schema import RunConfig
from launch.plan.table import before_start, planned, table
from tests.distributed import run_distributed
from tests.tiny import tiny_config, tiny_model
from tests.train.evaluate.test_answers import asked
from tests.train.plan.test_states import payload
from tests.train.rows import Words
from train.engine import Engine, deepspeed_settings
from train.evaluate.answers import greedy
from train.families import known_model, shape_of
from train.plan import generation, refuse_slow_answers
from train.plan.generation import held_out_sources, span
from train.ranks.group import Ranks
from train.tuning import trainable

LLAMA_70B: dict[str, Any] = known_model("meta-llama/Llama-3.1-70B") or {}
PARAMETERS = 70_553_706_496


def run(*overrides: str) -> RunConfig:
    own = ("model.path=meta-llama/Llama-3.1-70B", "zero=3", "batch.global_size=512", "batch.micro_size=1")
    return compose(["experiment=alpaca_llama3_8b_full", *own, "model.recompute=full", *overrides])


def test_one_token_after_another_gathers_the_model_over_the_network() -> None:
    """8 nodes lack 7/8 of 141 GB and bring them in at 0.8 x 400 GB/s; 8 rows are one batch of one rank."""
    cfg = run()
    assert held_out_sources(cfg) == 1
    found = generation(cfg, LLAMA_70B, nodes=8, per_node=8)
    assert found is not None
    assert (found.rows, found.gathered, found.tokens) == (8, 2.0 * PARAMETERS, 128)
    assert found.seconds == pytest.approx(128 * 2 * PARAMETERS * 7 / 8 / (0.8 * 400e9), rel=1e-6)
    refuse_slow_answers(cfg, found)


def test_inside_a_node_nvlink_brings_it() -> None:
    found = generation(run(), LLAMA_70B, nodes=1, per_node=8)
    assert found is not None
    assert found.seconds == pytest.approx(128 * 2 * PARAMETERS * 7 / 8 / (0.8 * 450e9), rel=1e-6)


def test_batches_beyond_the_ranks_wait_their_turn() -> None:
    """2,000 rows are 125 batches of 16, for 64 ranks two turns; another corpus adds its own rows."""
    found = generation(run("evaluation.generate_rows=2000"), LLAMA_70B, nodes=8, per_node=8)
    assert found is not None
    assert found.tokens == 2 * 128
    more = run("evaluation.generate_rows=2000", "+evaluation.sources.other=corpora/other")
    found = generation(more, LLAMA_70B, nodes=8, per_node=8)
    assert found is not None
    assert (found.rows, found.tokens) == (4000, 4 * 128)


@pytest.mark.parametrize(
    ("overrides", "nodes", "per_node"),
    [
        ((), 1, 1),
        (("zero=2",), 8, 8),
        (("evaluation=skip",), 8, 8),
        (("evaluation.generate_rows=0",), 8, 8),
        (("data.sources.alpaca.validation_fraction=0.0",), 8, 8),
    ],
)
def test_who_gathers_nothing_or_asks_nothing_pays_nothing(
    overrides: tuple[str, ...], nodes: int, per_node: int
) -> None:
    assert generation(run(*overrides), LLAMA_70B, nodes=nodes, per_node=per_node) is None


def test_a_slow_network_is_refused_with_the_command_that_answers() -> None:
    """25 Gb/s carry 2.5 GB/s of 123 GB a token: 49 s, 128 times 1.8 h."""
    slow = run("cluster.node_gbit_per_s=25", "cluster.nodes=8", "cluster.gpus_per_node=8", "run_dir=outputs/big")
    wanted = (
        r"evaluation\.generate_rows: under zero=3 every new token of an answer gathers 141\.1 GB of weights, so the "
        r"answers to 8 held-out rows take up to about 105 min per evaluation \(cluster\.node_gbit_per_s=25\), and 10 "
        r"min is the most .* set evaluation\.generate_rows=0, .*`python -m train\.evaluate run_dir=outputs/big "
        r"generate_rows=8`; or lower evaluation\.max_new_tokens=128"
    )
    with pytest.raises(ConfigError, match=wanted):
        before_start(slow)
    shown = re.sub(r"\s+", " ", table(planned(slow)))
    assert "answers: under zero=3 every new token of an answer gathers 141.1 GB" in shown
    assert "no memory plan" not in before_start(replace(slow, evaluation=replace(slow.evaluation, generate_rows=0)))


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (90, "90 s"), (600, "10 min"), (9000, "2.5 h")])
def test_a_span_is_short(seconds: float, said: str) -> None:
    assert span(seconds) == said


def gathered(ranks: Ranks) -> tuple[int, int, int]:
    """Bytes of weights that one rank's gathers make whole while it answers, the model's, and its new tokens."""
    cfg = compose(["experiment=demo", "model.dtype=fp32", "zero=3", "zero.persistence_threshold=0"])
    settings = deepspeed_settings(
        model=cfg.model, zero=cfg.zero, optim=cfg.optim, batch=replace(cfg.batch, global_size=2), world=2, on_cpu=True
    )
    model = tiny_model("llama")
    engine = Engine(model, trainable(model), settings=settings, optim=cfg.optim, zero=cfg.zero, ranks=ranks)
    moved = 0

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal moved
            moved += payload(str(func), args) if "allgather" in str(func) else 0
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Counted():
        how: dict[str, Any] = {"max_new_tokens": 5, "ranks": ranks, "synced": True}
        (answer,) = greedy(engine.module, asked([[3, 4, 5]]), Words(stop_ids=(-1,)), **how)
    return moved, 4 * shape_of(tiny_config("llama")).total, len(answer)


@pytest.mark.slow
def test_every_token_gathers_the_whole_model() -> None:
    """Counted at torch.distributed over two ranks; a parameter of an odd size is padded by a few bytes."""
    for moved, whole, tokens in run_distributed(gathered, 2):
        assert tokens == 5
        assert whole <= moved / tokens <= 1.02 * whole
