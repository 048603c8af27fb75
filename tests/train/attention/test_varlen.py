"""The kernel's function on a CPU, and how the kernel itself is called on a GPU."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.bias import causal_lower_right

from train.attention import packed
from train.attention.packed import varlen_attention_cpu


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: tuple[int, int], scale: float, cap: float | None = None
) -> torch.Tensor:
    """One segment, [Tq, H, D] over [Tk, K, D], query by query: bottom-right alignment, zeros where nothing is seen."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    out = q * 0.0
    for i in range(len(q)):
        diagonal = i + len(k) - len(q)
        low = 0 if window[0] < 0 else max(0, diagonal - window[0])
        high = len(k) if window[1] < 0 else min(len(k), diagonal + window[1] + 1)
        if low < high:
            scores = torch.einsum("hd,thd->ht", q[i], k[low:high]) * scale
            scores = scores if cap is None else cap * torch.tanh(scores / cap)
            out[i] = torch.einsum("ht,thd->hd", scores.softmax(-1), v[low:high])
    return out


@settings(deadline=None, max_examples=60)
@given(
    segments=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4),
    same=st.booleans(),
    window=st.sampled_from([(-1, -1), (-1, 0), (0, 0), (2, 0), (3, 1), (-1, 2)]),
    groups=st.sampled_from([1, 2]),
    scale=st.sampled_from([None, 0.3]),
    cap=st.sampled_from([None, 0.7]),
)
def test_cpu_function_is_varlen_attention(
    segments: list[tuple[int, int]],
    same: bool,
    window: tuple[int, int],
    groups: int,
    scale: float | None,
    cap: float | None,
) -> None:
    """Values and gradients against a plain loop, with other numbers of keys than queries and empty segments."""
    sizes = [(a, a if same else b) for a, b in segments]
    if not sum(a for a, _ in sizes):
        sizes.append((1, 1))
    bounds_q, bounds_k = ([0, *itertools.accumulate(each)] for each in zip(*sizes, strict=True))
    generator = torch.Generator().manual_seed(len(sizes) + bounds_q[-1])

    def draw(tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(tokens, heads, 8, generator=generator, dtype=torch.float64, requires_grad=True)

    q, k, v = draw(bounds_q[-1], 2 * groups), draw(bounds_k[-1], 2), draw(bounds_k[-1], 2)
    out = varlen_attention_cpu(
        q,
        k,
        v,
        torch.tensor(bounds_q, dtype=torch.int32),
        None if bounds_q == bounds_k else torch.tensor(bounds_k, dtype=torch.int32),
        max(a for a, _ in sizes),
        max(b for _, b in sizes),
        scale=scale,
        window_size=window,
        enable_gqa=groups > 1,
        soft_cap=cap,
    )
    spans = zip(itertools.pairwise(bounds_q), itertools.pairwise(bounds_k), strict=True)
    used = scale or 1 / math.sqrt(8)
    expected = torch.cat([reference(q[a:b], k[c:d], v[c:d], window, used, cap) for (a, b), (c, d) in spans])
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
    pull = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad(out, (q, k, v), pull, allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(expected, (q, k, v), pull, allow_unused=True, materialize_grads=True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_more_keys_than_queries_are_aligned_at_the_bottom_right() -> None:
    """The last query sees the last key: torch's own ``causal_lower_right``, one segment at a time, grouped heads."""
    bounds_q, bounds_k = [0, 4, 5, 12], [0, 9, 10, 17]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(size, generator=generator) for size in ((12, 4, 8), (17, 2, 8), (17, 2, 8)))
    cu_q, cu_k = (torch.tensor(each, dtype=torch.int32) for each in (bounds_q, bounds_k))
    out = varlen_attention_cpu(q, k, v, cu_q, cu_k, 7, 9, window_size=(-1, 0), enable_gqa=True)
    for (a, b), (c, d) in zip(itertools.pairwise(bounds_q), itertools.pairwise(bounds_k), strict=True):
        query, key, value = q[a:b].transpose(0, 1), k[c:d].transpose(0, 1), v[c:d].transpose(0, 1)
        key, value = key.repeat_interleave(2, dim=0), value.repeat_interleave(2, dim=0)
        mask = causal_lower_right(b - a, d - c)
        wanted = torch.nn.functional.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask)
        torch.testing.assert_close(out[a:b], wanted[0].transpose(0, 1), atol=1e-6, rtol=0)


def test_grouped_heads_must_be_asked_for() -> None:
    q, k, bounds = torch.zeros(3, 4, 8), torch.zeros(3, 2, 8), torch.tensor([0, 3])
    with pytest.raises(ValueError, match="enable_gqa"):
        varlen_attention_cpu(q, k, k, bounds, bounds, 3, 3)


@pytest.mark.parametrize("grouping", ["asked for", "by itself", "no"])
def test_cuda_path_calls_the_kernel_as_the_cpu_function(monkeypatch: pytest.MonkeyPatch, grouping: str) -> None:
    """No GPU here: the kernel is replaced by its CPU reference, which groups heads as kernels of other torches do."""

    def by_itself(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):  # type: ignore[no-untyped-def]
        groups = q.shape[1] != k.shape[1]
        options = {"scale": scale, "window_size": window_size, "enable_gqa": groups}
        return varlen_attention_cpu(q, k, v, cu_q, cu_k, max_q, max_k, **options)

    def not_at_all(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):  # type: ignore[no-untyped-def]
        return varlen_attention_cpu(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window_size)

    kernel = {"asked for": varlen_attention_cpu, "by itself": by_itself, "no": not_at_all}[grouping]
    monkeypatch.setattr(packed, "_find_varlen", lambda: kernel)
    for name in ("_kernel", "_grouping"):
        monkeypatch.setattr(packed, name, getattr(packed, name))
    packed._how_heads_are_grouped.cache_clear()
    packed._prepare(torch.device("cpu"), torch.float32)
    packed._how_heads_are_grouped.cache_clear()
    assert packed._grouping == grouping
    q, k, v = torch.randn(9, 4, 8), torch.randn(9, 2, 8), torch.randn(9, 2, 8)
    bounds = torch.tensor([0, 4, 9], dtype=torch.int32)
    options = {"scale": 0.5, "window_size": (2, 0), "enable_gqa": True}
    out = packed._varlen_cuda(q, k, v, bounds, bounds, 5, 5, **options)
    torch.testing.assert_close(out, varlen_attention_cpu(q, k, v, bounds, bounds, 5, 5, **options))
