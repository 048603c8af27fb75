"""Packed attention: samples of one row never see one another, and no mask is ever built.

Registered with transformers under a name that has no mask function. On CUDA it is PyTorch's variable-length kernel;
on a CPU a function of the same signature (varlen_cpu.py), which is also that kernel's reference in the tests.

Shape suffixes: T tokens, H query heads, K key/value heads, D head size, S segments.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Literal

import torch

from conf.errors import ConfigError, InternalError
from train.attention.exchange import Exchange
from train.attention.gather import Uses, gather
from train.attention.types import Attention
from train.attention.varlen_cpu import varlen_attention_cpu
from train.families import Family

RANK = 30
IMPLEMENTATION = "corral_packed"
ATTENTION = Attention(name="packed", implementation=IMPLEMENTATION, layout="flat", shares=True, exchanges=True)

Varlen = Callable[..., torch.Tensor]


def require(family: Family, *, pack: str, dtype: torch.dtype, device: torch.device) -> Attention:
    """Register the backend and return it, or raise ConfigError saying why it cannot serve this run."""
    asked = "attention: packed was asked for"
    if not family.packing:
        raise ConfigError(f"{asked} a model of type {family.model_type}, {family.reason}; attention=auto works")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"{asked} on a {device.type} device, and it knows kernels for cpu and cuda only; attention=sdpa works"
        )
    if device.type == "cuda" and dtype not in (torch.bfloat16, torch.float16):
        raise ConfigError(
            f"{asked} with {dtype} on a GPU, and its kernel takes 16-bit numbers only; "
            "model.dtype=bf16 or attention=sdpa works"
        )
    if device.type == "cuda" and _find_varlen() is None:
        raise ConfigError(
            f"{asked} and torch {torch.__version__} was found, but torch.nn.attention.varlen needs torch >= 2.10; "
            "attention=sdpa works"
        )
    if device.type == "cuda" and family.soft_cap:
        raise ConfigError(
            f"{asked} a model of type {family.model_type}, whose attention scores are soft-capped, and PyTorch's "
            "kernel for GPUs has no soft cap; attention=flash2 or attention=auto works"
        )
    if device.type == "cuda":
        _prepare(device, dtype)
    _register()
    return ATTENTION


Grouping = Literal["asked for", "by itself", "no"]
_kernel: Varlen | None = None
_grouping: Grouping = "no"
"""The kernel and how it takes fewer key than query heads. Plain globals, because compiled blocks read them."""


def _prepare(device: torch.device, dtype: torch.dtype) -> None:
    global _kernel, _grouping
    _kernel = _find_varlen()
    _grouping = _how_heads_are_grouped(device, dtype)


@functools.cache
def _how_heads_are_grouped(device: torch.device, dtype: torch.dtype) -> Grouping:
    """torch >= 2.12 wants ``enable_gqa``. Before, the kernel underneath groups heads unasked: tried, because nothing
    promises it, and repeated heads cost a quarter of the time of attention."""
    varlen = _find_varlen()
    assert varlen is not None
    if "enable_gqa" in inspect.signature(varlen).parameters:
        return "asked for"
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(9, heads, 64, generator=generator).to(device, dtype) for heads in (4, 2, 2))
    bounds = torch.tensor([0, 4, 9], dtype=torch.int32, device=device)

    def outcome(repeats: int) -> list[torch.Tensor]:
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        keys, values = (x.repeat_interleave(repeats, dim=1) for x in inputs[1:])
        out = varlen(inputs[0], keys, values, bounds, bounds, 5, 5, window_size=(-1, 0))
        return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]

    try:
        alike = all(
            torch.allclose(one, other, atol=2e-2, rtol=2e-2) for one, other in zip(outcome(1), outcome(2), strict=True)
        )
    except (RuntimeError, ValueError, IndexError):
        return "no"
    return "by itself" if alike else "no"


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, packed_attention)


@functools.cache
def _find_varlen() -> Varlen | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn  # type: ignore[return-value]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    softcap: float | None = None,
    key_index: torch.Tensor | None = None,
    key_uses: Uses | None = None,
    exchange: Exchange | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D].

    ``sliding_window`` counts the token itself, as in transformers; ``softcap`` is Gemma 2's. ``key_index``, int64 [Tk],
    gathers the keys and values that ``cu_seq_lens_k`` bounds, where samples share a prefix (train/batches/batch.py);
    ``key_uses`` are its uses, for the sums of the backward pass (train/attention/gather.py). ``exchange``: T is a slice
    of the row that the bounds and ``key_index`` are of; the rest comes from the ranks that hold it. Raises
    InternalError without the samples' bounds, because attention over a whole row would mix samples.
    """
    if cu_seq_lens_q is None or cu_seq_lens_k is None or max_length_q is None or max_length_k is None:
        raise InternalError(
            "packed attention was called without the bounds of the samples (cu_seq_lens, max_length); "
            "a batch without them, or generation, needs model.set_attn_implementation('sdpa')"
        )
    if attention_mask is not None or dropout or query.shape[0] != 1:
        raise InternalError("packed attention takes one flat row, no mask and no dropout")
    if exchange is not None:
        query, key, value = exchange.to_heads(query, key, value)
    if key_index is not None:
        if key_uses is None:
            raise InternalError("packed attention got key_index without key_uses; pass train.attention.gather.uses_of")
        key, value = gather(key, key_index, key_uses), gather(value, key_index, key_uses)
    window = (sliding_window - 1, 0) if sliding_window and sliding_window < max_length_k else (-1, 0)
    attend = varlen_attention_cpu if query.device.type == "cpu" else _varlen_cuda
    out_THD = attend(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        cu_seq_lens_q,
        cu_seq_lens_k,
        max_length_q,
        max_length_k,
        scale=scaling,
        window_size=window,
        enable_gqa=query.shape[1] != key.shape[1],
        soft_cap=softcap,
    )
    if exchange is not None:
        out_THD = exchange.to_tokens(out_THD)
    return out_THD[None], None


def _varlen_cuda(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
    soft_cap: float | None = None,
) -> torch.Tensor:
    assert _kernel is not None, "require() refuses a torch without varlen_attn"
    assert soft_cap is None, "require() refuses families with a soft cap on CUDA"
    options = {"enable_gqa": True} if enable_gqa and _grouping == "asked for" else {}
    if enable_gqa and _grouping == "no":
        groups = q_THD.shape[1] // k_TKD.shape[1]
        k_TKD, v_TKD = k_TKD.repeat_interleave(groups, dim=1), v_TKD.repeat_interleave(groups, dim=1)
    return _kernel(
        q_THD, k_TKD, v_TKD, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size, **options
    )
