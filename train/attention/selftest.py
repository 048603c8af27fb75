"""Start-up proof of an attention backend on this machine: right numbers, and no sample sees another.

Three ragged segments, grouped-query heads, with and without a sliding window, values and gradients, against a
reference in fp32 that is written out plainly. The leakage probe changes the first segment; not one bit of the others
may change.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from train.attention.gather import uses_of

LENGTHS = (5, 1, 9)
HEADS, KEY_HEADS, HEAD_SIZE = 4, 2, 32
WINDOW = 4
CAP = 1.0
"""Near the scores, so that a kernel that forgets the cap is far off."""
ALLOWED = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest error by dtype, of outputs and gradients, over the largest value of the reference if that exceeds one."""


@dataclass(frozen=True)
class SelfTest:
    error: float
    """Largest difference from the fp32 reference."""
    leak: float
    """Largest change of segments two and three when segment one changes."""
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed and self.leak == 0.0


class Probe(torch.nn.Module):
    """As much of an attention layer as transformers' attention functions look at."""

    def __init__(self, implementation: str, groups: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation=implementation)
        self.num_key_value_groups = groups
        self.is_causal = True
        self.layer_idx = 0


@functools.cache
def measure(
    implementation: str, *, dtype: torch.dtype, device: torch.device, capped: bool, shared: bool = False
) -> SelfTest:
    """Run the self-test of a transformers attention function by name, once per process, dtype and device.

    ``capped``: with soft-capped scores, for a family that has them. ``shared``: the first segment is a prefix that the
    other two share; then the second is changed, and the third may not.
    """
    generator = torch.Generator().manual_seed(0)
    total, cap = sum(LENGTHS), CAP if capped else None
    shapes = [(1, heads, total, HEAD_SIZE) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes)
    pull = torch.randn((1, total, HEADS, HEAD_SIZE), generator=generator).to(device, dtype)
    changed = sum(LENGTHS[: 2 if shared else 1])
    q2, k2, v2 = (_with_change(x.detach(), changed - LENGTHS[int(shared)], changed) for x in (q, k, v))
    error = leak = 0.0
    for window in (None, WINDOW):
        out = _run(implementation, q, k, v, window, cap, shared)
        wanted = _reference(q.float(), k.float(), v.float(), window, cap, shared)
        found = [out, *torch.autograd.grad(out, (q, k, v), pull)]
        expected = [wanted, *torch.autograd.grad(wanted, (q, k, v), pull.float())]
        error = max(error, *(_distance(a, b) for a, b in zip(found, expected, strict=True)))
        other = _run(implementation, q2, k2, v2, window, cap, shared)
        leak = max(leak, float((out - other)[:, changed:].detach().abs().max()))
    return SelfTest(error=error, leak=leak, allowed=ALLOWED[dtype])


def _distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    found, wanted = found.detach().float(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))


def _with_change(x: torch.Tensor, start: int, end: int) -> torch.Tensor:
    x = x.clone()
    x[:, :, start:end] += 1.0
    return x


def _run(
    implementation: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: int | None,
    cap: float | None,
    shared: bool,
) -> torch.Tensor:
    """[1, T, H, D] from the named function, called as a model calls it."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    bounds = _bounds(LENGTHS, q.device)
    mask = _seen(window, q.device, shared)[None, None] if implementation == "sdpa" else None
    first, second, third = (torch.arange(a, b, device=q.device) for a, b in itertools.pairwise(bounds.tolist()))
    longer = (LENGTHS[0], LENGTHS[0] + LENGTHS[1], LENGTHS[0] + LENGTHS[2])
    keys = _keys(torch.cat([first, first, second, first, third])) if shared else {}
    out, _ = ALL_ATTENTION_FUNCTIONS[implementation](
        Probe(implementation, HEADS // KEY_HEADS),
        q,
        k,
        v,
        mask,
        dropout=0.0,
        scaling=HEAD_SIZE**-0.5,
        sliding_window=window,
        softcap=cap,
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=_bounds(longer, q.device) if shared else bounds,
        max_length_q=max(LENGTHS),
        max_length_k=max(longer if shared else LENGTHS),
        **keys,
    )
    return out  # type: ignore[no-any-return]


def _keys(index: torch.Tensor) -> dict[str, object]:
    uses = uses_of(index.cpu().numpy(), sum(LENGTHS), lambda array: torch.from_numpy(array).to(index.device))
    return {"key_index": index, "key_uses": uses}


def _bounds(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def _seen(window: int | None, device: torch.device, shared: bool) -> torch.Tensor:
    """Boolean [T, T]: same sample, not in the future, within the window (which counts the token itself)."""
    segment = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).to(device)
    place = torch.cat([torch.arange(length) for length in LENGTHS]).to(device)
    own = segment[:, None] == segment
    if shared:
        place = place + (segment > 0) * LENGTHS[0]
        own = own | (segment == 0)
    behind = place[:, None] - place
    return own & (behind >= 0) & (behind < (window or sum(LENGTHS)))


def _reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, cap: float | None, shared: bool
) -> torch.Tensor:
    """softmax(q k / sqrt(D)) v over what is seen, in fp32: [1, T, H, D]. Soft cap: Gemma 2, section 2."""
    k, v = (x.repeat_interleave(HEADS // KEY_HEADS, dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(HEAD_SIZE)
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    weights = scores.masked_fill(~_seen(window, q.device, shared), float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2)
