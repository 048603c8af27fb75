"""Gradients that are added up in the order of the micro-batches: plain torch's bits on any number of ranks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distributed import run_distributed
from tests.train.engine.test_engine import GLOBAL, OPTIM, Toy, make_engine, named, nll, targets
from train.engine import Engine
from train.engine.in_order import order_free_norm
from train.engine.parameters import parameter_groups
from train.ranks.group import Ranks

STEPS = 3
Bits = dict[str, bytes]


def feed_in_turn(engine: Engine, ranks: Ranks, step: int, micro: int) -> None:
    turns = -(-GLOBAL // (ranks.world * micro))
    for turn in range(turns):
        first = (turn * ranks.world + ranks.rank) * micro
        losses = [nll(engine.module, step, index) for index in range(first, min(first + micro, GLOBAL))]
        losses += [0.0 * engine.module(torch.zeros(1, dtype=torch.long)).sum() for _ in range(micro - len(losses))]
        engine.accumulate(sum(losses) / targets(step), last=turn == turns - 1)  # type: ignore[arg-type]


def bits(tensors: dict[str, torch.Tensor]) -> Bits:
    return {name: tensor.detach().float().contiguous().numpy().tobytes() for name, tensor in tensors.items()}


def weights(engine: Engine) -> dict[str, list[tuple[int, dict[str, bytes]]]]:
    found: dict[str, list[tuple[int, dict[str, bytes]]]] = {}
    for each in engine.fragments():
        found.setdefault(each.name, []).append((each.start, bits(each.tensors)))
    return found


def whole(ranks: list[dict[str, list[tuple[int, dict[str, bytes]]]]]) -> Bits:
    """The fragments of all ranks, put together."""
    joined: Bits = {}
    for name in {name for rank in ranks for name in rank}:
        pieces = sorted((piece for rank in ranks for piece in rank.get(name, [])), key=lambda piece: piece[0])
        for kind in pieces[0][1]:
            joined[f"{name} {kind}"] = b"".join(piece[kind] for _, piece in pieces)
    return joined


def trained(ranks: Ranks, cases: list[tuple[int, int, str, bool]]) -> list[Any]:
    """Per case: gradients and norm of every step, and the fragments of this rank after the last."""
    found = []
    for stage, micro, dtype, in_order in cases:
        # A bucket of 100 elements, so that there are several.
        engine = make_engine(ranks, stage, micro, dtype, bucket_elements=100, overlap_comm=False)
        if in_order:
            engine.sum_in_order()
        steps = []
        for step in range(STEPS):
            feed_in_turn(engine, ranks, step, micro)
            gradients = bits(engine.gradients())
            steps.append((gradients, engine.step(OPTIM.lr).grad_norm))
        found.append((steps, weights(engine)))
    return found


def plain(ranks: Ranks, micro: int) -> Any:
    """One process of plain torch: micro-batches one after another, the norm in float64, torch's AdamW."""
    model = Toy()
    parameters = named(model)
    optimizer = torch.optim.AdamW(parameter_groups(parameters, OPTIM), lr=OPTIM.lr, betas=(0.9, 0.95), eps=OPTIM.eps)
    steps = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for first in range(0, GLOBAL, micro):
            losses = [nll(model, step, index) for index in range(first, min(first + micro, GLOBAL))]
            (sum(losses) / targets(step)).backward()  # type: ignore[union-attr]
        gradients = {name: each.grad.clone() for name, each in parameters.items()}  # type: ignore[union-attr]
        norm = math.sqrt(math.fsum(float(x) ** 2 for each in gradients.values() for x in each.flatten()))
        if norm > OPTIM.clip:
            for each in parameters.values():
                each.grad.mul_(OPTIM.clip / norm)  # type: ignore[union-attr]
        steps.append((bits(gradients), norm))
        optimizer.step()
    states = {f"{name} weight": each for name, each in parameters.items()}
    for name, each in parameters.items():
        states |= {f"{name} {kind}": optimizer.state[each][kind] for kind in ("exp_avg", "exp_avg_sq")}
    return steps, bits(states)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "worlds"),
    [
        ("fp32", (1, 2)),
        ("fp32", (3, 4)),
        ("bf16", (1, 2, 3, 4)),
    ],
)
def test_any_number_of_ranks_gives_the_bits_of_plain_torch(dtype: str, worlds: tuple[int, ...]) -> None:
    cases = [(stage, micro, dtype, True) for stage, micro in itertools.product((2, 3), (1, 2))]
    wanted = {micro: run_distributed(plain, 1, micro)[0] for micro in (1, 2)} if dtype == "fp32" else {}
    for world in worlds:
        ranks = run_distributed(trained, world, cases)
        for number, (_, micro, _, _) in enumerate(cases):
            steps, state = ranks[0][number][0], whole([rank[number][1] for rank in ranks])
            assert all(rank[number][0] == steps for rank in ranks)
            # In bf16 there is no plain torch with fp32 masters; the first case of each micro-batch is the reference.
            reference = wanted.setdefault(micro, (steps, state))
            assert [gradients for gradients, _ in steps] == [gradients for gradients, _ in reference[0]], (world, micro)
            assert [norm for _, norm in steps] == pytest.approx([norm for _, norm in reference[0]], rel=1e-14)
            assert state == reference[1], (world, cases[number])


@pytest.mark.slow
def test_without_it_the_number_of_ranks_shows() -> None:
    """The control: the same micro-batches, summed by DeepSpeed."""
    found = {world: run_distributed(trained, world, [(2, 1, "fp32", False)]) for world in (1, 3)}
    states = [whole([rank[0][1] for rank in ranks]) for ranks in found.values()]
    assert states[0].keys() == states[1].keys()
    assert states[0] != states[1]


def skipping(ranks: Ranks) -> tuple[bool, bool, bool]:
    """A step whose gradients are not finite changes nothing, and the next one is as if it had not been."""
    engine = make_engine(ranks, 2, 1)
    engine.sum_in_order()
    before = weights(engine)
    turns = GLOBAL // ranks.world
    for turn in range(turns):
        factor = math.nan if (ranks.rank, turn) == (1, 0) else 1.0
        engine.accumulate(nll(engine.module, 0, turn) * factor, last=turn == turns - 1)
    outcome = engine.step(OPTIM.lr)
    unchanged = weights(engine) == before
    feed_in_turn(engine, ranks, 1, 1)
    return outcome.skipped and not math.isfinite(outcome.grad_norm), unchanged, engine.step(OPTIM.lr).skipped


def test_gradients_that_are_not_finite_are_skipped_and_forgotten() -> None:
    assert run_distributed(skipping, 2) == [(True, True, False)] * 2


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60), st.randoms())
@settings(max_examples=150, deadline=None)
def test_the_norm_does_not_depend_on_order_or_division(values: list[float], random: Any) -> None:
    numbers = torch.tensor(values, dtype=torch.float32)
    first = order_free_norm([numbers], Ranks(), len(values))
    for _ in range(3):
        order = list(range(len(values)))
        random.shuffle(order)
        cuts = sorted(random.sample(range(len(values) + 1), min(3, len(values))))
        parts = [numbers[order][a:b] for a, b in itertools.pairwise([0, *cuts, len(values)])]
        assert order_free_norm(parts, Ranks(), len(values)) == first
    # fsum is exact, and squares of fp32 are exact in float64 unless they underflow it.
    exact = math.fsum(float(each) ** 2 for each in numbers)
    bound = 4 * len(values) * 2.0 ** (-2 * (62 - len(values).bit_length())) + 2**-51
    assert first**2 == pytest.approx(exact, rel=bound, abs=1e-300)


def test_the_norm_of_what_is_not_finite_is_infinite() -> None:
    for wrong in (math.nan, math.inf, -math.inf):
        assert order_free_norm([torch.tensor([1.0, wrong]), torch.tensor([])], Ranks(), 2) == math.inf
    assert order_free_norm([torch.zeros(3), torch.tensor([])], Ranks(), 3) == 0.0


def norms(ranks: Ranks, values: Any) -> float:
    mine = torch.from_numpy(np.array_split(values, ranks.world)[ranks.rank])
    return order_free_norm([mine], ranks, len(values))


@pytest.mark.slow
def test_the_norm_of_ranks_is_the_norm_of_one() -> None:
    values = np.random.default_rng(0).standard_normal(10_001).astype(np.float32) * np.float32(1e-4)
    found = {norm for world in (1, 2, 3) for norm in run_distributed(norms, world, values)}
    assert len(found) == 1
    assert found.pop() == pytest.approx(float(np.linalg.norm(values.astype(np.float64))), rel=1e-14)


def test_an_update_does_not_depend_on_where_the_weights_are_cut() -> None:
    """What ``in_order`` relies on: torch's AdamW computes every element alike, at the end of a tensor too."""
    generator = torch.Generator().manual_seed(0)
    size, cuts = 10_007, [1, 7, 50, 5_003, 9_990]
    start = torch.randn(size, generator=generator)
    gradients = [torch.randn(size, generator=generator) * 10.0 ** -(step * 2) for step in range(5)]

    def after(bounds: list[int]) -> list[bytes]:
        pieces = list(itertools.pairwise([0, *bounds, size]))
        parameters = [torch.nn.Parameter(start[a:b].clone()) for a, b in pieces]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
        for gradient in gradients:
            for parameter, (a, b) in zip(parameters, pieces, strict=True):
                parameter.grad = gradient[a:b].clone()
            optimizer.step()
        states = [optimizer.state[each] for each in parameters]
        kinds = [parameters, [each["exp_avg"] for each in states], [each["exp_avg_sq"] for each in states]]
        return [torch.cat([each.detach() for each in kind]).numpy().tobytes() for kind in kinds]

    assert after(cuts) == after([])


def refused(ranks: Ranks) -> list[Any]:
    """The fragments and norms after a refused update and the same step again, and after that step alone."""
    found = []
    for answers in ((False, True), (True,)):
        engine = make_engine(ranks, 2, 1, "fp32", bucket_elements=100, overlap_comm=False)
        engine.sum_in_order()
        before, norms = weights(engine), []
        for answer in answers:
            feed_in_turn(engine, ranks, 0, 1)
            asked: list[float] = []
            outcome = engine.step(OPTIM.lr, lambda norm, answer=answer, asked=asked: (asked.append(norm), answer)[1])  # type: ignore[misc]
            assert (outcome.skipped, asked[-1]) == (not answer, outcome.grad_norm)
            assert answer or weights(engine) == before
            norms.append(outcome.grad_norm)
        found.append((weights(engine), norms[-1]))
    return found


def test_a_refused_update_is_none_and_its_totals_are_forgotten() -> None:
    for again, alone in run_distributed(refused, 2):
        assert again == alone
