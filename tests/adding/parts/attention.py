"""A backend of one's own: each segment of a row with its keys, one after another, scores and softmax written out."""

from __future__ import annotations

from typing import Any

import torch

from train.attention.types import Attention
from train.families import Family

NAME = "planted_attention"
ATTENTION = Attention(name="planted", implementation=NAME, layout="flat", shares=True)
RANK = 100


def require(family: Family, *, pack: str, dtype: torch.dtype, device: torch.device) -> Attention:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
    return ATTENTION


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **bounds: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, T, D], key and value [1, key heads, T, D] -> [1, T, heads, D]."""
    index = bounds.get("key_index")
    if index is not None:
        key, value = key.index_select(2, index), value.index_select(2, index)
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    found = []
    ends = zip(bounds["cu_seq_lens_q"].tolist(), bounds["cu_seq_lens_k"].tolist(), strict=True)
    (q_start, k_start), *rest = ends
    for q_end, k_end in rest:
        scores = query[0, :, q_start:q_end] @ key[0, :, k_start:k_end].transpose(1, 2) * scaling
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        own = torch.arange(q_end - q_start)[:, None] + (k_end - k_start) - (q_end - q_start)
        behind = own - torch.arange(k_end - k_start)[None]
        hidden = (behind < 0) | (behind >= (sliding_window or k_end))
        found.append(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value[0, :, k_start:k_end])
        q_start, k_start = q_end, k_end
    return torch.cat(found, dim=1).transpose(0, 1)[None], None
