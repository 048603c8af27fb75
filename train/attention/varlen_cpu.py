"""Variable-length attention on a CPU, with the signature and meaning of ``torch.nn.attention.varlen.varlen_attn``.

Shape suffixes: T tokens, H query heads, K key/value heads, D head size, N samples of a group, L its longest.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch.nn import functional

SLACK = 0.75
"""Samples are computed together if the shorter has at least this share of the longer's tokens: a call costs as much as
some forty tokens, padding costs its square. Measured on one core, forward and backward, 4 heads of 32: a row of 100
samples of 20 tokens 4 ms instead of 49 with one call per sample, a row of 18 samples of 30 to 200 tokens 21 instead
of 45."""
LONG = 512
"""Samples of so many tokens are computed alone: a call more does not show there."""


@torch.compiler.disable  # type: ignore[untyped-decorator]  # reads the bounds, which a compiled graph cannot
def varlen_attention_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """``torch.nn.attention.varlen.varlen_attn`` on a CPU: query [T, H, D], key and value [Tk, K, D] -> [T, H, D].

    Segment s is queries cu_seq_q[s]..cu_seq_q[s+1] over keys cu_seq_k[s]..cu_seq_k[s+1]; causality is aligned at the
    bottom right (the last query sees the last key), and ``window_size`` = (left, right) counts neighbours around that
    diagonal, -1 meaning no limit. A query that sees no key gives zeros. ``soft_cap``, which the kernel has not: scores
    s become cap * tanh(s / cap) before the softmax (Gemma 2, section 2).
    """
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads over {key.shape[1]} key heads need enable_gqa=True")
    bounds_q = cu_seq_q.tolist()
    bounds_k = bounds_q if cu_seq_k is None or cu_seq_k is cu_seq_q else cu_seq_k.tolist()
    if window_size == (-1, 0) and soft_cap is None and _sees_itself(bounds_q, bounds_k):
        return _causal_groups(query, key, value, (tuple(bounds_q), tuple(bounds_k)), scale, enable_gqa)
    q_HTD, k_KTD, v_KTD = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
    spans = zip(bounds_q, bounds_q[1:], bounds_k, bounds_k[1:], strict=False)
    pieces = [
        _segment(q_HTD[:, a:b], k_KTD[:, c:d], v_KTD[:, c:d], window_size, scale, enable_gqa, soft_cap)
        for a, b, c, d in spans
        if b > a
    ]
    return torch.cat(pieces, dim=1).transpose(0, 1)


def _sees_itself(bounds_q: list[int], bounds_k: list[int]) -> bool:
    """Whether no segment has more queries than keys, so that every query sees at least its own."""
    spans = zip(bounds_q, bounds_q[1:], bounds_k, bounds_k[1:], strict=False)
    return bounds_q == bounds_k or all(b - a <= d - c for a, b, c, d in spans)


@dataclass(frozen=True)
class _Group:
    """Samples computed together, padded at the right to the longest."""

    samples: int
    longest: int
    before: int
    """Keys that stand before the first query's own: the same for the whole group."""

    def mask(self) -> torch.Tensor | None:
        """[L, before + L], True where a query sees a key: causal, aligned at the bottom right. None: no key before."""
        if not self.before:
            return None
        return torch.ones(self.longest, self.before + self.longest, dtype=torch.bool).tril(self.before)


@dataclass(frozen=True)
class _Grouping:
    """All groups of a row, one after the other; padding points at its sample's first token."""

    groups: tuple[_Group, ...]
    queries: torch.Tensor
    """Places in the row, of every query of every sample of every group, int64."""
    keys: torch.Tensor
    """As ``queries``; the shared keys of a sample first."""
    back: torch.Tensor
    """For every token of the row, its place in ``queries``, int64."""


@functools.lru_cache(maxsize=8)
def _grouping(bounds: tuple[tuple[int, ...], tuple[int, ...]]) -> _Grouping:
    """Samples of similar length put together. Cached because every layer of a model asks for the same row."""
    pairs = zip(itertools.pairwise(bounds[0]), itertools.pairwise(bounds[1]), strict=True)
    spans = sorted(((d - c - b + a, b - a, a, c) for (a, b), (c, d) in pairs if b > a), reverse=True)
    groups, queries, keys, reals = [], [], [], []
    while spans:
        before, longest, _, _ = spans[0]
        alike = (each[0] == before and each[1] >= SLACK * longest for each in spans)
        size = 1 if longest >= LONG else sum(itertools.takewhile(bool, alike))
        members, spans = spans[:size], spans[size:]
        _, lengths, starts, key_starts = torch.tensor(members).T
        place, key_place = torch.arange(longest), torch.arange(before + longest)
        real, real_keys = place < lengths[:, None], key_place < before + lengths[:, None]
        queries.append(torch.where(real, starts[:, None] + place, starts[:, None]).flatten())
        keys.append(torch.where(real_keys, key_starts[:, None] + key_place, key_starts[:, None]).flatten())
        reals.append(real.flatten())
        groups.append(_Group(size, longest, before))
    places, kept = torch.cat(queries), torch.cat(reals).nonzero()[:, 0]
    return _Grouping(tuple(groups), places, torch.cat(keys), kept[places[kept].argsort()])


def _causal_groups(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: tuple[tuple[int, ...], tuple[int, ...]],
    scale: float | None,
    grouped: bool,
) -> torch.Tensor:
    """Causal attention inside each sample: [T, H, D]. Padding at the right is seen by nothing that is kept."""
    row = _grouping(bounds)
    query_sizes = [each.samples * each.longest for each in row.groups]
    key_sizes = [each.samples * (each.before + each.longest) for each in row.groups]
    queries = torch.split(query.index_select(0, row.queries), query_sizes)
    keys, values = (torch.split(x.index_select(0, row.keys), key_sizes) for x in (key, value))
    pieces = []
    for group, *parts in zip(row.groups, queries, keys, values, strict=True):
        q_NHLD, k_NKLD, v_NKLD = (x.view(group.samples, -1, *x.shape[1:]).transpose(1, 2) for x in parts)
        mask = group.mask()
        out_NHLD = functional.scaled_dot_product_attention(
            q_NHLD, k_NKLD, v_NKLD, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
        pieces.append(out_NHLD.transpose(1, 2).flatten(0, 1))
    return torch.cat(pieces).index_select(0, row.back)


def _segment(
    q_HTD: torch.Tensor,
    k_KTD: torch.Tensor,
    v_KTD: torch.Tensor,
    window: tuple[int, int],
    scale: float | None,
    grouped: bool,
    soft_cap: float | None,
) -> torch.Tensor:
    """One sample: [H, Tq, D] over [K, Tk, D]."""
    queries, keys = q_HTD.shape[1], k_KTD.shape[1]
    left, right = window
    # Under a limit to the right, the first queries of a segment with more queries than keys see nothing.
    blind = queries if keys == 0 else max(0, queries - keys - right) if right >= 0 else 0
    blind = min(blind, queries)
    if blind:
        rest = q_HTD[:, blind:]
        seen = _segment(rest, k_KTD, v_KTD, window, scale, grouped, soft_cap) if blind < queries else rest
        return torch.cat([q_HTD[:, :blind] * 0.0, seen], dim=1)  # with a graph, as the kernel's output
    plain_causal = right == 0 and left < 0 and queries == keys
    if soft_cap is not None:
        return _capped(q_HTD, k_KTD, v_KTD, _band(queries, keys, left, right, q_HTD.device), scale, soft_cap)
    mask = None if plain_causal or (left < 0 and right < 0) else _band(queries, keys, left, right, q_HTD.device)
    return functional.scaled_dot_product_attention(
        q_HTD[None], k_KTD[None], v_KTD[None], attn_mask=mask, is_causal=plain_causal, scale=scale, enable_gqa=grouped
    )[0]


def _capped(
    q_HTD: torch.Tensor,
    k_KTD: torch.Tensor,
    v_KTD: torch.Tensor,
    seen: torch.Tensor,
    scale: float | None,
    cap: float,
) -> torch.Tensor:
    """Attention with soft-capped scores, written out: [H, Tq, D]. The softmax is in fp32, as transformers' own."""
    groups = q_HTD.shape[0] // k_KTD.shape[0]
    k_HTD, v_HTD = (x.repeat_interleave(groups, dim=0) for x in (k_KTD, v_KTD))
    scores = q_HTD @ k_HTD.transpose(1, 2) * (q_HTD.shape[-1] ** -0.5 if scale is None else scale)
    scores = (torch.tanh(scores / cap) * cap).masked_fill(~seen, float("-inf"))
    at_least_fp32 = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=at_least_fp32).to(v_HTD.dtype) @ v_HTD


def _band(queries: int, keys: int, left: int, right: int, device: torch.device) -> torch.Tensor:
    """Boolean [queries, keys], True where seen: ``left`` and ``right`` neighbours of the bottom-right diagonal."""
    distance = torch.arange(keys, device=device) - (torch.arange(queries, device=device)[:, None] + keys - queries)
    seen = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        seen &= distance >= -left
    if right >= 0:
        seen &= distance <= right
    return seen
