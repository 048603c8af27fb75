"""The gather of shared keys: its gradient is a sum in fp32, rounded once, for any layout, compiled and recomputed."""

from __future__ import annotations

import itertools
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from train.attention import gather as gathering
from train.attention import packed
from train.attention.gather import Uses, gather, uses_of
from train.attention.packed import IMPLEMENTATION, _register
from train.attention.selftest import measure

WIDTH = (1, 2, 8)
"""Batch, heads and head size."""

ragged = st.lists(st.tuples(st.integers(1, 5), st.lists(st.integers(0, 4), max_size=6)), min_size=1, max_size=5)
"""Prefixes of a row: each its length, and the lengths of the rests of the samples that share it."""


def row_of(prefixes: list[tuple[int, list[int]]]) -> tuple[np.ndarray, int]:
    """The gather of a row of [prefix][rest][rest]..., and the row's tokens."""
    pieces, at = [], 0
    for length, rests in prefixes:
        prefix = np.arange(at, at + length)
        pieces.append(prefix)
        at += length
        for rest in rests:
            pieces += [prefix, np.arange(at, at + rest)]
            at += rest
    return np.concatenate(pieces), at


def sharers(count: int, prefix: int = 200, rest: int = 4) -> tuple[np.ndarray, int]:
    return row_of([(prefix, [rest] * count)])


def backward(index: np.ndarray, tokens: int, gradient: torch.Tensor) -> torch.Tensor:
    row = torch.zeros(*WIDTH[:2], tokens, WIDTH[2], dtype=gradient.dtype, requires_grad=True)
    out = gather(row, torch.from_numpy(index), uses_of(index, tokens))
    (found,) = torch.autograd.grad(out, row, gradient)
    return found


def pulled(index: np.ndarray, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*WIDTH[:2], len(index), WIDTH[2], generator=generator).to(dtype)


def exact(index: np.ndarray, tokens: int, gradient: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros(*WIDTH[:2], tokens, WIDTH[2], dtype=torch.float64)
    return zeros.index_add(2, torch.from_numpy(index), gradient.double())


@settings(deadline=None, max_examples=150)
@given(prefixes=ragged, unused=st.integers(0, 2), seed=st.integers(0, 9), chunk=st.sampled_from([1, 40, 2**23]))
def test_the_gradient_is_the_sum_over_all_uses(
    prefixes: list[tuple[int, list[int]]], unused: int, seed: int, chunk: int
) -> None:
    """bf16 within one rounding of fp64; fp32 and fp64 the bits of index_select on a CPU; any number of heads."""
    index, tokens = row_of(prefixes)
    tokens += unused  # tokens at the end that nothing gathers
    with mock.patch.object(gathering, "CHUNK_ELEMENTS", chunk):
        for dtype in (torch.float32, torch.float64):
            gradient = pulled(index, dtype, seed)
            row = torch.zeros(*WIDTH[:2], tokens, WIDTH[2], dtype=dtype, requires_grad=True)
            out = row.index_select(2, torch.from_numpy(index))
            assert torch.equal(backward(index, tokens, gradient), torch.autograd.grad(out, row, gradient)[0])
        gradient = pulled(index, torch.bfloat16, seed)
        wanted = exact(index, tokens, gradient)
        found = backward(index, tokens, gradient)
    assert found.dtype == torch.bfloat16
    spread = exact(index, tokens, gradient.abs())
    assert ((found.double() - wanted).abs() <= 2**-8 * wanted.abs() + 1e-6 * spread).all()
    assert not found[:, :, tokens - unused :].any()


@pytest.mark.parametrize("count", [1, 20, 60, 200])
def test_bf16_rounds_once_however_many_share(count: int) -> None:
    """index_select's backward rounds after every term, on a CPU too, so its error grows with the sharers."""
    index, tokens = sharers(count)
    gradient = pulled(index, torch.bfloat16)
    wanted = exact(index, tokens, gradient)[:, :, :200]

    def error(found: torch.Tensor) -> float:
        return float((found[:, :, :200].double() - wanted).norm() / wanted.norm())

    row = torch.zeros(*WIDTH[:2], tokens, WIDTH[2], dtype=torch.bfloat16, requires_grad=True)
    term_by_term = torch.autograd.grad(row.index_select(2, torch.from_numpy(index)), row, gradient)[0]
    once, found, before = (error(each) for each in (wanted.bfloat16(), backward(index, tokens, gradient), term_by_term))
    print(f"{count} sharers: fp32 sum {found:.2%}, term by term in bf16 {before:.2%}, one rounding {once:.2%}")
    assert found == pytest.approx(once, rel=0.02)
    assert count < 20 or before > 2 * once


def test_packed_attention_takes_keys_and_values_by_it() -> None:
    """With a kernel that gives its keys and values back, their gradients are sums in fp32, rounded once."""
    index, tokens = sharers(60)
    keys, values = (torch.zeros(*WIDTH[:2], tokens, WIDTH[2], dtype=torch.bfloat16, requires_grad=True) for _ in "kv")
    pulls = [pulled(index, torch.bfloat16, seed) for seed in (0, 1)]
    bounds = torch.tensor([0, tokens], dtype=torch.int32)
    with mock.patch.object(packed, "varlen_attention_cpu", lambda q, k, v, *_, **__: torch.cat([k, v])):
        out, _ = packed.packed_attention(
            torch.nn.Identity(),
            torch.zeros_like(keys),
            keys,
            values,
            None,
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=tokens,
            max_length_k=tokens,
            key_index=torch.from_numpy(index),
            key_uses=uses_of(index, tokens),
        )
    both = torch.cat(pulls, dim=2).transpose(1, 2)
    for found, pull in zip(torch.autograd.grad(out, (keys, values), both), pulls, strict=True):
        wanted = exact(index, tokens, pull)
        once = float((wanted.bfloat16().double() - wanted).norm())
        assert float((found.double() - wanted).norm()) <= 1.02 * once


def test_what_the_row_uses() -> None:
    index = np.array([0, 1, 0, 1, 2, 0, 1, 4])
    first, several, places, bounds = (each.tolist() for each in uses_of(index, 5))
    assert first[:3] == [0, 1, 4]
    assert first[4] == 7
    assert several == [0, 1, 3]  # token 3 is gathered by nobody
    assert [places[a:b] for a, b in itertools.pairwise(bounds)] == [[0, 2, 5], [1, 3, 6], []]
    alone = uses_of(np.arange(4), 4)
    assert (len(alone.several), len(alone.places), alone.bounds.tolist()) == (0, 0, [0])
    gradient = pulled(np.arange(4), torch.float32)
    assert torch.equal(backward(np.arange(4), 4, gradient), gradient)


def test_gradients_by_finite_differences() -> None:
    index, tokens = row_of([(2, [1, 0]), (1, [2])])
    row = torch.randn(1, 2, tokens, 3, dtype=torch.float64, requires_grad=True)
    uses = uses_of(index, tokens)
    assert torch.autograd.gradcheck(lambda x: gather(x, torch.from_numpy(index), uses), row)


def test_compiled_blocks_take_it_whole_and_for_every_length() -> None:
    """No break in the graph (fullgraph), one graph for all lengths, and the bits of the eager gather."""
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")

    def block(row: torch.Tensor, index: torch.Tensor, uses: Uses) -> torch.Tensor:
        return gather((row * 2).transpose(1, 2).contiguous().transpose(1, 2), index, uses) * 3

    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=graphs)
    for count in (2, 5, 9, 3):
        index, tokens = row_of([(3, [2] * count), (2, [4, 1])])
        row = torch.randn(*WIDTH[:2], tokens, WIDTH[2], generator=torch.Generator().manual_seed(count))
        pull, found = pulled(index, torch.float32), []
        for each in (block, compiled):
            leaf = row.clone().requires_grad_()
            out = each(leaf, torch.from_numpy(index), uses_of(index, tokens))
            found.append((out.detach(), torch.autograd.grad(out, leaf, pull)[0]))
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert graphs.frame_count == 1, graphs.frame_count


def test_recomputation_gathers_again() -> None:
    index, tokens = sharers(3)
    row = torch.randn(*WIDTH[:2], tokens, WIDTH[2], requires_grad=True)
    uses, places = uses_of(index, tokens), torch.from_numpy(index)
    plain, again = (
        torch.autograd.grad(out.square().sum(), row)[0]
        for out in (
            gather(row.sin(), places, uses),
            torch.utils.checkpoint.checkpoint(
                lambda x, **bounds: gather(x.sin(), places, bounds["uses"]), row, uses=uses, use_reentrant=False
            ),
        )
    )
    assert torch.equal(plain, again)


def test_the_self_test_of_bf16_is_no_worse_with_a_shared_prefix() -> None:
    _register()
    cpu = torch.device("cpu")
    apart, shared = (
        measure(IMPLEMENTATION, dtype=torch.bfloat16, device=cpu, capped=False, shared=each) for each in (False, True)
    )
    assert shared.passed
    assert shared.error <= 1.5 * apart.error
