"""Traffic of a step by hand, what of it hides, and what slower links cost."""

from __future__ import annotations

import pytest

from conf.compose import compose
from conf.schema import RunConfig
from tests.train.plan.test_plan import LLAMA_31_8B
from train.plan import plan
from train.plan.choice import resolve
from train.plan.communication import Traffic, exposed, hiding_tokens, slower_links, traffic


def sized(*overrides: str) -> RunConfig:
    return compose(["model=llama31_8b", "cluster.nodes=8", "cluster.gpus_per_node=8", *overrides])


@pytest.mark.parametrize(("gigabits", "tokens"), [(400, 12.4e3), (8 * 400, 1.5e3), (100, 49e3)])
def test_tokens_above_which_stage_3_hides(gigabits: float, tokens: float) -> None:
    """Six bytes per weight in bf16 alone, eight with a scatter in fp32."""
    assert hiding_tokens(gigabits, "bf16") == pytest.approx(tokens, rel=0.04)
    assert hiding_tokens(gigabits) == pytest.approx(8 / 6 * hiding_tokens(gigabits, "bf16"))


def moved(stage: int, reduce_dtype: str, world: int = 8) -> Traffic:
    return traffic(
        trained=1000,
        gathered=4000.0,
        stage=stage,
        dtype="bf16",
        reduce_dtype=reduce_dtype,
        micro_batches=4,
        world=world,
    )


def test_traffic_by_hand() -> None:
    """Stage 1 reduces 4 bytes once, stage 2 every micro-batch, both gather 2; stage 3 gathers 4,000 and scatters."""
    assert (moved(1, "fp32").all_reduce, moved(1, "fp32").all_gather) == (4 * 1000, 2 * 1000)
    assert (moved(2, "fp32").all_reduce, moved(2, "bf16").all_reduce) == (4 * 4 * 1000, 4 * 2 * 1000)
    assert moved(3, "fp32").on_the_wire(8) == (4000 + 4 * 1000) * 4 * 7 / 8
    assert moved(3, "bf16").on_the_wire(8) == 3 * 2000 * 4 * 7 / 8
    assert moved(2, "fp32", world=1).on_the_wire(1) == 0


def test_reductions_between_nodes_by_hand() -> None:
    """8 nodes of 400 Gb/s: a byte per weight takes as long to enter a node as 2,060 tokens take to compute.

    0.5 x 989e12 FLOP/s / (6 FLOP per weight and token) / (0.8 x 50e9 bytes/s) = 2,060. 4 micro-batches of 8,192 tokens,
    so three reductions more than stage 1 has.
    """
    common = ["cluster.node_gbit_per_s=400.0", "batch.micro_size=4", "batch.global_size=1024", "data.seq_len=2048"]
    byte = 2060.4 / 8192 * 7 / 8 * 3 / 4

    def cost(*overrides: str, trained: int = 100) -> float:
        return exposed(sized(*common, *overrides), trained=trained, total=100)

    assert cost("zero=1") == cost("zero=2", "cluster.nodes=1") == cost("zero=2", "batch.global_size=256") == 0
    assert cost("zero=2", "zero.overlap_comm=false") == pytest.approx(8 * byte, rel=1e-3)
    assert cost("zero=2") == pytest.approx(8 * byte / 2, rel=1e-3)  # half of it hides beside the backward pass
    assert cost("zero=2", "batch.micro_size=1") == pytest.approx(
        8 * 4 * byte * 5 / 4 - 2 / 3, rel=1e-3
    )  # 16 reductions
    assert cost("zero=2", "zero.reduce_dtype=bf16") == pytest.approx(4 * byte / 2, rel=1e-3)
    assert cost("zero=2", "zero.overlap_comm=false", trained=1) == pytest.approx(8 * byte * 1.5 / 100, rel=1e-3)
    assert cost("zero=3") == pytest.approx(8 * byte * 4 / 3 / 2, rel=1e-3)
    within = ["zero=3", "+zero.deepspeed.zero_hpz_partition_size=8"]
    assert cost(*within) == pytest.approx(6 * byte * 4 / 3 / 2, rel=1e-3)


def test_the_plans_speed_knows_what_does_not_hide() -> None:
    common = ["batch.micro_size=4", "batch.global_size=1024", "data.seq_len=2048"]
    rates = {}
    for gigabits in (3200.0, 400.0):
        for stage in (1, 2):
            cfg = sized(*common, f"cluster.node_gbit_per_s={gigabits}", f"zero={stage}", "model.recompute=none")
            found = plan(cfg, LLAMA_31_8B).speed
            assert not isinstance(found, str)
            rates[gigabits, stage] = found.tokens_per_second_per_gpu
    assert rates[3200.0, 1] > rates[3200.0, 2] > 1.4 * rates[400.0, 2]
    assert rates[400.0, 2] < rates[400.0, 1] < rates[3200.0, 1]


def test_slower_links_than_the_fitted_rows_had_cost_time_by_hand() -> None:
    """One reduction per step is in the fitted constants, at 3,200 Gbit/s: 257.6 tokens of compute per byte of a weight.

    Stage 1 sends 2 x 4 bytes per weight and gathers 2, over 4 micro-batches of 8,192 tokens; stage 2 hides half of what
    it sends; stage 3 moves 8 bytes for every micro-batch, and half of that hides.
    """
    common = ["cluster.node_gbit_per_s=400.0", "batch.micro_size=4", "batch.global_size=1024", "data.seq_len=2048"]
    byte = (2060.4 - 257.6) / 8192 * 7 / 8

    def cost(*overrides: str, trained: int = 100) -> float:
        return slower_links(sized(*common, *overrides), trained=trained, total=100)

    assert cost("zero=1") == pytest.approx(10 * byte / 4, rel=1e-3)
    assert cost("zero=1", trained=1) == pytest.approx(10 * byte / 4 * 1.5 / 100, rel=1e-3)
    assert cost("zero=2") == pytest.approx((8 / 2 + 2) * byte / 4, rel=1e-3)
    assert cost("zero=2", "zero.overlap_comm=false") == pytest.approx(10 * byte / 4, rel=1e-3)
    assert cost("zero=3") == pytest.approx(8 * byte / 2, rel=1e-3)
    assert cost("zero=1", "cluster.nodes=1", "batch.global_size=128") == 0
    assert cost("zero=1", "cluster.node_gbit_per_s=3200") == cost("zero=3", "cluster.node_gbit_per_s=6400") == 0


def test_the_plan_leaves_a_stage_that_its_links_do_not_bear() -> None:
    """Stage 3 takes larger micro-batches where links are slow, with recomputation if need be, and loses speed."""
    open_settings = ["zero=3", "model.recompute=auto", "batch.micro_size=auto", "batch.global_size=1024"]
    rates = []
    for gigabits in (3200, 400, 100):
        cfg = resolve(sized(*open_settings, f"cluster.node_gbit_per_s={gigabits}"), LLAMA_31_8B, 1.0)
        found = plan(cfg, LLAMA_31_8B).speed
        assert not isinstance(found, str)
        rates.append((cfg.batch.micro_size, found.tokens_per_second_per_gpu))
    assert rates[0][0] <= rates[1][0] <= rates[2][0]
    assert rates[0][1] > rates[1][1] > 1.5 * rates[2][1]
