"""Parts of a step by themselves, each a question that the whole step answers too coarsely.

``python -m benchmarks.gpu_parts PART FOLDER DEVICE``; ``benchmarks/gpu_jobs.py`` says which question a part is for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_ceilings import seconds
from benchmarks.gpu_jobs import LLAMA_8B, Job
from benchmarks.gpu_worker import random_start, settings, versions, write

SHARERS, PREFIX, REST = 60, 128, 32
"""A row of 2,048 tokens: a prefix and what 60 samples have of their own."""


@dataclass
class Found:
    figures: dict[str, float] = field(default_factory=dict)
    """By a label with its unit."""
    notes: list[str] = field(default_factory=list)
    """What could not be measured here, and why."""


def main(name: str, folder: Path, device: str) -> None:
    found = PARTS[name](folder, device)
    write(folder, name, {"versions": versions(device), "figures": found.figures, "notes": found.notes})


def gather(folder: Path, device: str) -> Found:
    """Keys of samples that share a prefix, [1, 8, 2048, 128] in bf16: Corral's gather against index_select."""
    from train.attention.gather import gather as in_fp32
    from train.attention.gather import uses_of

    heads, width, tokens = 8, 128, PREFIX + SHARERS * REST
    own = [np.arange(PREFIX + REST * each, PREFIX + REST * (each + 1)) for each in range(SHARERS)]
    index = np.concatenate([np.arange(PREFIX), *(np.concatenate([np.arange(PREFIX), each]) for each in own)])
    places = torch.from_numpy(index).to(device)
    uses = uses_of(index, tokens, lambda array: torch.from_numpy(array).to(device))
    torch.manual_seed(0)
    pull = torch.randn(1, heads, len(index), width, device=device).bfloat16()
    row = torch.randn(1, heads, tokens, width, device=device).bfloat16().requires_grad_()
    exact = torch.zeros(1, heads, tokens, width, dtype=torch.float64, device=device).index_add(2, places, pull.double())
    found = Found()
    for label, work in (
        ("fp32 sums", lambda: torch.autograd.grad(in_fp32(row, places, uses), row, pull)[0]),
        ("index_select", lambda: torch.autograd.grad(row.index_select(2, places), row, pull)[0]),
    ):
        error = float((work().double() - exact)[:, :, :PREFIX].norm() / exact[:, :, :PREFIX].norm())
        found.figures[f"{label}: relative error of a prefix's gradient, %"] = 100 * error
        found.figures[f"{label}: forward and backward, ms"] = 1e3 * seconds(work, device)
    return found


def host_adamw(folder: Path, device: str) -> Found:
    """The update of offloaded optimizer states, on the host's cores: fused as Corral has it, and by torch's default."""
    elements = 2**22 if device == "cpu" else 2**28
    found = Found()
    for label, fused in (("fused", True), ("not fused", None)):
        weight = torch.zeros(elements)
        weight.grad = torch.ones(elements)
        step = torch.optim.AdamW([weight], lr=1e-4, fused=fused).step
        found.figures[f"AdamW on the host, {label}: ns per parameter"] = 1e9 * seconds(step, "cpu") / elements
    return found


def graph(folder: Path, device: str) -> Found:
    """Forward and backward of a micro-batch of the 1B model, launched one by one and replayed as a CUDA graph."""
    from transformers import AutoModelForCausalLM

    from conf.compose import compose
    from data_prep.corpus.prepared import open_prepared
    from data_prep.stream.stream import Stream
    from train.attention import packed
    from train.batches.feed import Feed
    from train.objectives.sft import token_nll_sum
    from train.ranks.group import Ranks

    tiny, place = device == "cpu", torch.device(device)
    start, dtype = random_start("1b", folder, device), torch.float32 if tiny else torch.bfloat16
    cfg = compose(settings(Job("1b"), folder, start, tiny))
    splits = open_prepared(cfg).split("train")
    stream = Stream(splits, cfg.data, seed=0, global_size=1 if tiny else 4)
    feed = Feed([splits[name] for name in stream.names], "flat", 0, Ranks(device=place))
    batch = feed.batch(next(stream).rows[:])
    packed._register()
    packed._prepare(place, dtype)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=dtype, attn_implementation=packed.IMPLEMENTATION)
    model.to(place).train()

    def micro_step() -> None:
        token_nll_sum(model, batch, targets_only=True).backward()  # type: ignore[no-untyped-call]

    found = Found({f"micro-step of {batch.input_ids.shape[1]} tokens, launched: ms": 1e3 * seconds(micro_step, device)})
    if tiny:
        found.notes.append("no CUDA graph without a GPU")
        return found
    try:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            micro_step()
    except RuntimeError as error:
        found.notes.append(f"the micro-step cannot be captured: {' '.join(str(error).split())[:300]}")
        return found
    found.figures["the same as a CUDA graph: ms"] = 1e3 * seconds(captured.replay, device)
    return found


def fp8(folder: Path, device: str) -> Found:
    """What fp8 could give at most: the products of the 8B model's MLP, and what scaling both operands costs."""
    tokens, scale = (256, 16) if device == "cpu" else (8192, 1)
    hidden, inner = LLAMA_8B["hidden_size"] // scale, LLAMA_8B["intermediate_size"] // scale
    left = torch.randn(tokens, hidden, device=device).bfloat16()
    right = torch.randn(inner, hidden, device=device).bfloat16()
    flops, found = 2.0 * tokens * hidden * inner, Found()

    def scaled(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        limit = torch.finfo(torch.float8_e4m3fn).max
        factor = x.abs().amax().float() / limit
        return (x / factor).clamp(-limit, limit).to(torch.float8_e4m3fn), factor

    def product(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch._scaled_mm(a[0], b[0].t(), a[1], b[1], out_dtype=torch.bfloat16)

    exact = left.double() @ right.double().t()
    found.figures["MLP of the 8B model in bf16: TFLOP/s"] = flops / seconds(lambda: left @ right.t(), device) / 1e12
    ready = scaled(left), scaled(right)
    try:
        error = float((product(*ready).double() - exact).norm() / exact.norm())
    except RuntimeError as refused:  # torch's only type for a card, or a build, without this product: that is an answer
        found.notes.append(f"no product in fp8 here: {' '.join(str(refused).split())[:200]}")
        return found
    found.figures |= {
        "the same in fp8, operands scaled before: TFLOP/s": flops / seconds(lambda: product(*ready), device) / 1e12,
        "the same in fp8 with the scaling of both: TFLOP/s": flops
        / seconds(lambda: product(scaled(left), scaled(right)), device)
        / 1e12,
        "the same in fp8: relative error of the product, %": 100 * error,
    }
    return found


PARTS: dict[str, Callable[[Path, str], Found]] = {
    "gather": gather,
    "host-adamw": host_adamw,
    "graph": graph,
    "fp8": fp8,
}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3])
