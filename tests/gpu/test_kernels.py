"""Kernels on an NVIDIA GPU against fp32 and fp64 on the CPU: attention, the head in chunks, fused blocks."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from conf.schema import SftObjective
from tests.tiny import PACKING_FAMILIES, tiny_model
from tests.train.rows import EOS, FakeSplit, sharing
from train.attention import choose, packed
from train.attention.gather import gather, uses_of
from train.attention.varlen_cpu import varlen_attention_cpu
from train.batches.batch import Predicted
from train.batches.collate import collate
from train.families import family
from train.model.kernels import use_kernels
from train.objectives.head import head_losses
from train.objectives.sft import token_nll_sum
from train.plan import chunks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU; run make test-gpu where one is"),
]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("window", [(-1, 0), (3, 0)])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("bounds_k", [[0, 5, 6, 21], [0, 8, 12, 30]], ids=["same", "more keys"])
def test_cuda_kernel_agrees_with_the_cpu_function(bounds_k: list[int], key_heads: int, window: tuple[int, int]) -> None:
    """Values and gradients, grouped heads, a window, and more keys than queries (aligned at the bottom right)."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(21, 4, 64), (bounds_k[-1], key_heads, 64), (bounds_k[-1], key_heads, 64)]
    mine = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    pull = torch.randn(shapes[0], generator=generator).bfloat16()
    cu_q, cu_k = (torch.tensor(each, dtype=torch.int32) for each in ([0, 5, 6, 21], bounds_k))
    options = {"scale": 0.125, "window_size": window, "enable_gqa": key_heads != 4}

    def run(attend: Callable[..., torch.Tensor], device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        q, k, v = (x.to(device, dtype).requires_grad_() for x in mine)
        out = attend(q, k, v, cu_q.to(device), cu_k.to(device), 15, 18, **options)
        pieces = [out, *torch.autograd.grad(out, (q, k, v), pull.to(device, dtype))]
        return [piece.detach().float().cpu() for piece in pieces]

    packed._prepare(CUDA, torch.bfloat16)
    found = run(packed._varlen_cuda, "cuda", torch.bfloat16)
    for one, other in zip(found, run(varlen_attention_cpu, "cpu", torch.float32), strict=True):
        torch.testing.assert_close(one, other, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("sharers", [1, 20, 60, 200])
def test_gradients_of_a_shared_prefix_are_summed_in_fp32(sharers: int) -> None:
    """Against fp32 sums from the same bf16 numbers, rounded once; the same bits twice, and no wait for the GPU."""
    prefix, rest, heads, width = 40, 6, 8, 128
    own = [np.arange(prefix + rest * each, prefix + rest * (each + 1)) for each in range(sharers)]
    index = np.concatenate([np.arange(prefix), *(np.concatenate([np.arange(prefix), each]) for each in own)])
    tokens = prefix + rest * sharers
    gradient = torch.randn(1, heads, len(index), width, generator=torch.Generator().manual_seed(0)).bfloat16()
    zeros = torch.zeros(1, heads, tokens, width)
    wanted = zeros.index_add(2, torch.from_numpy(index), gradient.float()).bfloat16()
    row = torch.zeros(1, heads, tokens, width, dtype=torch.bfloat16, device=CUDA, requires_grad=True)
    uses = uses_of(index, tokens, lambda array: torch.from_numpy(array).to(CUDA))
    places, pull = torch.from_numpy(index).to(CUDA), gradient.to(CUDA)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [torch.autograd.grad(gather(row, places, uses), row, pull)[0] for _ in range(2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(*found)
    torch.testing.assert_close(found[0].cpu(), wanted, atol=0, rtol=2**-7)
    assert float((found[0].cpu() != wanted).float().mean()) <= 1e-3


def test_auto_finds_an_isolating_backend_on_a_gpu() -> None:
    for kind in PACKING_FAMILIES:
        found = choose("auto", family=family(kind), pack="exact", dtype=torch.bfloat16, device=torch.device("cuda"))
        assert found.layout == "flat"


@pytest.mark.parametrize("positions", [1, 700, 1000])
def test_the_head_in_chunks_is_right_in_bf16(positions: int) -> None:
    """Against fp64 from the same bf16 numbers, no further off than the same steps in bf16 on the CPU."""
    vocab, width = 1024, 64
    generator = torch.Generator().manual_seed(positions)
    hidden, weight = (
        torch.randn(shape, generator=generator).bfloat16() for shape in ((positions, width), (vocab, width))
    )
    labels = torch.randint(vocab, (positions,), generator=generator)
    loss, places = SftObjective(z_loss=1e-4, label_smoothing=0.1), torch.arange(positions)

    def run(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        h, w = (x.to(device, dtype).requires_grad_() for x in (hidden, weight))
        nll, objective = head_losses(h, w, None, Predicted(places.to(device), labels.to(device)), loss)
        found = (nll, objective, *torch.autograd.grad(objective / positions, (h, w)))
        return [x.detach().double().cpu() for x in found]

    with mock.patch.dict(chunks.CHUNK_ELEMENTS, cuda=256 * vocab):
        found, same, exact = run("cuda", torch.bfloat16), run("cpu", torch.bfloat16), run("cpu", torch.float64)
    for one, beside, wanted in zip(found, same, exact, strict=True):
        error, usual = (float((x - wanted).norm() / wanted.norm()) for x in (one, beside))
        assert error <= 1.5 * usual + 2e-3


@pytest.mark.parametrize("kernels", ["none", "compile", "liger"])
def test_packed_rows_with_shared_prefixes_give_the_gradients_of_the_cpu(kernels: str) -> None:
    """bf16 on the GPU, no further from fp32 than bf16 on the CPU is, which sums a shared prefix in fp32 too
    (tests/train/attention/test_gather.py); what is compiled is compiled once."""
    if kernels == "liger" and importlib.util.find_spec("liger_kernel") is None:
        pytest.skip("needs liger_kernel: pip install -e '.[gpu]'")
    packed._register()
    packed._prepare(CUDA, torch.bfloat16)
    exact = tiny_model("llama", implementation=packed.IMPLEMENTATION)
    plain, model = (copy.deepcopy(exact).bfloat16() for _ in range(2))
    rows = ([[0, 1, 2]], [[3, 4, 5, 6]], [[7, 8, 9, 10, 11]], [[1, 2]], [[0, 3, 6, 9]])
    # The CPU first: Liger changes transformers' functions for the whole process.
    wanted, usual = ([gradients(each, row, torch.device("cpu")) for row in rows] for each in (exact, plain))
    use_kernels(model.to(CUDA), kernels, family("llama"), CUDA)
    torch._dynamo.utils.counters.clear()
    graphs = []
    for row, right, beside in zip(rows, wanted, usual, strict=True):
        found = gradients(model, row, CUDA)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        assert distance(found, right) <= 1.5 * distance(beside, right) + 2e-3
    assert not torch._dynamo.utils.counters["graph_break"], dict(torch._dynamo.utils.counters["graph_break"])
    assert graphs[-1] == graphs[1], f"compiled again for other lengths: {graphs} graphs after each row"


def gradients(model: Any, rows: list[list[int]], device: torch.device) -> list[torch.Tensor]:
    model.zero_grad()
    split = data()
    batch = collate([sharing(split, row) for row in rows], [split], layout="flat", pad_id=0).to(device)
    token_nll_sum(model, batch, targets_only=True).backward()  # type: ignore[no-untyped-call]
    return [parameter.grad.detach().float().cpu() for parameter in model.parameters()]


def distance(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Norm of the difference over the norm, all tensors together."""
    apart = sum(float((one - other).norm()) ** 2 for one, other in zip(found, wanted, strict=True))
    return float((apart / sum(float(other.norm()) ** 2 for other in wanted)) ** 0.5)


def data() -> Any:
    """Twelve samples of 15 to 150 tokens, two thirds with one of two prefixes."""
    generator = torch.Generator().manual_seed(3)
    prefixes = (tuple(range(5, 25)), (5, 6, 11))
    samples = []
    for row in range(12):
        head = [prefixes[0], prefixes[1], ()][row % 3]
        middle = torch.randint(0, EOS, (10 + row * 10,), generator=generator).tolist()
        ids = [*head, *middle, EOS]
        answer = 5 + row
        mask = [0] * (len(ids) - answer) + [1] * answer
        samples.append((np.array(ids, np.int32), np.array(mask, np.uint8)))
    return FakeSplit("a", samples, prefixes)
