"""The card's highest speeds: matrix products, and attention over packed rows and over long documents."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_jobs import LLAMA_1B
from benchmarks.gpu_worker import versions, write

REPEATS = 10


def main(folder: Path, device: str) -> None:
    tiny = device == "cpu"
    dtype = torch.float32 if tiny else torch.bfloat16
    size = 256 if tiny else 8192
    hidden, inner = LLAMA_1B["hidden_size"] // (16 if tiny else 1), LLAMA_1B["intermediate_size"] // (16 if tiny else 1)
    rates = {
        f"matrix product {size} x {size} x {size}": product(size, size, size, dtype, device),
        f"MLP of the 1B model, {size} tokens": product(size, hidden, inner, dtype, device),
    }
    for name, lengths in packed_lengths(size).items():
        rates[f"attention of the 1B model, {name}, forward and backward"] = attention(lengths, dtype, device)
    write(folder, "ceilings", {"versions": versions(device), "flops_per_s": rates})


def packed_lengths(tokens: int) -> dict[str, list[int]]:
    """Lengths of samples as in Alpaca, about log-normal, and of one document."""
    drawn = np.random.default_rng(0).lognormal(np.log(95.0), 0.55, tokens).astype(int).clip(16, tokens)
    inside = drawn[np.cumsum(drawn) <= tokens].tolist()
    return {"samples of about 100 tokens": inside, f"one document of {tokens} tokens": [tokens]}


def product(rows: int, inner: int, columns: int, dtype: torch.dtype, device: str) -> float:
    left = torch.randn(rows, inner, dtype=dtype, device=device)
    right = torch.randn(inner, columns, dtype=dtype, device=device)
    return 2.0 * rows * inner * columns / seconds(lambda: left @ right, device)


def attention(lengths: list[int], dtype: torch.dtype, device: str) -> float:
    """FLOP/s of the attention function that training calls; counts visible pairs: 4 forward, 10 backward per pair."""
    from train.attention.packed import packed_attention, require
    from train.families import family

    heads, key_heads, width = (LLAMA_1B[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    require(family("llama"), pack="exact", dtype=dtype, device=torch.device(device))
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
    q, k, v = (
        torch.randn(1, count, sum(lengths), width, dtype=dtype, device=device, requires_grad=True)
        for count in (heads, key_heads, key_heads)
    )

    def both() -> None:
        out, _ = packed_attention(
            torch.nn.Identity(),
            q,
            k,
            v,
            None,
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=max(lengths),
            max_length_k=max(lengths),
        )
        torch.autograd.grad(out.sum(), (q, k, v))

    pairs = sum(length * (length + 1) / 2 for length in lengths)
    return 14.0 * heads * width * pairs / seconds(both, device)


def seconds(work: Callable[[], object], device: str) -> float:
    """Median seconds of several calls, after three calls to warm up."""
    times = []
    for turn in range(3 + REPEATS):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn >= 3:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
