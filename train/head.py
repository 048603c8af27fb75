"""The head and the loss over it, a chunk of positions at a time, with the gradient made in the same pass.

The logits of one chunk are alive at any moment, once: in one buffer, first as scores, at the end as their gradient
(Wijmans et al. 2024, Cut Your Losses, section 3; Hsu et al. 2024, Liger Kernel, section 3.2: the gradient of a
cross-entropy is there as soon as its softmax is). Nothing is computed twice, and memory stops growing with the targets.
Rows of the buffer begin at multiples of 64 elements: products over GPT-2's vocabulary of 50,257 took 1.5 times as long
on a CPU without it, and a GPU's matrix units want aligned rows too.

The head module itself is called, with another forward for the time being, so that whatever hangs on it still happens:
ZeRO-3's hooks, which gather its weight for it.

Shape suffixes: T positions of the row, N of them with targets, C of these in a chunk, H hidden width, V vocabulary, P
the vocabulary padded to whole steps of 64.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from conf.errors import InternalError
from conf.schema import LossConfig
from train.chunks import chunk_size, padded

ChunkLosses = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Losses = tuple[torch.Tensor, torch.Tensor]
"""Sum of -log p(target) and of what is minimised, fp32 scalars; the second with a graph."""


def plain_head(model: nn.Module) -> nn.Linear | None:
    """The output layer of ``model``, if logits are all it makes and all that becomes of it: no adapter, no soft cap."""
    model = getattr(model, "module", model)  # DeepSpeed's engine has a config of its own, which knows no cap
    find: Callable[[], nn.Module] | None = getattr(model, "get_output_embeddings", None)
    head = find() if find else None
    capped = getattr(getattr(model, "config", None), "final_logit_softcapping", None)
    return head if type(head) is nn.Linear and not capped else None


@contextmanager
def losses_for_logits(
    head: nn.Linear, places_N: torch.Tensor, labels_N: torch.Tensor, loss: LossConfig
) -> Iterator[None]:
    """Inside it, ``head`` called with hidden states [1, T, H] returns the two losses, [2], instead of logits.

    ``places_N``: positions that predict something, int64, each once; ``labels_N``: the token that each predicts, int64.
    """

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        return torch.stack(head_losses(hidden[0], places_N, head.weight, head.bias, labels_N, loss))

    assert "forward" not in vars(head), "someone else replaced the head's forward"
    head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward


def head_losses(
    hidden_TH: torch.Tensor,
    places_N: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_N: torch.Tensor,
    loss: LossConfig,
) -> Losses:
    """The losses of ``train.loss`` over logits hidden[places] @ weight.T + bias, which never exist as a whole."""
    needed = torch.is_grad_enabled()
    nll, objective = _HeadLosses.apply(hidden_TH, weight_VH, bias_V, places_N, labels_N, loss, needed)  # type: ignore[no-untyped-call]
    return nll, objective


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        places_N: torch.Tensor,
        labels_N: torch.Tensor,
        loss: LossConfig,
        needed: bool,
    ) -> Losses:
        wants = [needed and want for want in ctx.needs_input_grad[:3]]
        hidden_NH = hidden_TH.index_select(0, places_N)
        kind = _pretended[-1] if _pretended else hidden_NH.device.type
        vocab, size = len(weight_VH), chunk_size(len(labels_N), len(weight_VH), kind)
        grad_h = torch.empty_like(hidden_NH) if wants[0] else None
        parts_w, parts_b = (_Sum(several=size < len(labels_N)) if want else None for want in wants[1:])
        options = (loss.label_smoothing, loss.z_loss, any(wants))
        losses_of = _traced_losses if _pretended else _losses_of_chunks(kind, vocab, *options)
        nll, objective = (hidden_NH.new_zeros((), dtype=torch.float32) for _ in range(2))
        buffer = hidden_NH.new_empty(size, padded(vocab))
        for hidden_CH, labels_C, out_CH in zip(
            torch.split(hidden_NH, size), torch.split(labels_N, size), _split(grad_h, size, len(labels_N)), strict=True
        ):
            scores_CP = buffer[: len(labels_C)]
            scores_CV = _scores(hidden_CH, weight_VH, bias_V, out=scores_CP)
            chunk_nll, chunk_objective = losses_of(scores_CP, labels_C)  # from here on they are the gradient
            nll, objective = nll + chunk_nll, objective + chunk_objective
            if out_CH is not None:
                torch.mm(scores_CV, weight_VH, out=out_CH)
            if parts_w is not None:
                parts_w.add(scores_CV.T, hidden_CH)
            if parts_b is not None:
                parts_b.add(scores_CV.T, torch.ones_like(hidden_CH[:, :1]))
        ctx.gradients = (grad_h, parts_w and parts_w.total, parts_b and parts_b.total)
        ctx.dtype, ctx.rows = weight_VH.dtype, len(hidden_TH)
        ctx.save_for_backward(places_N)
        ctx.mark_non_differentiable(nll)
        return nll, objective

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, _: torch.Tensor, scale: torch.Tensor) -> Any:
        if ctx.gradients is None:
            raise InternalError("the loss was differentiated twice; its gradient was scaled in place the first time")
        gradients, ctx.gradients = ctx.gradients, None
        hidden, weight, bias = (None if each is None else each.mul_(scale) for each in gradients)
        if hidden is not None:
            # Copied, not added: each place stands once, and atomic sums have no order on a GPU.
            hidden = hidden.new_zeros(ctx.rows, hidden.shape[1]).index_copy_(0, ctx.saved_tensors[0], hidden)
        return hidden, _as(weight, ctx.dtype), _as(bias, ctx.dtype, flat=True), None, None, None, None


def _scores(
    hidden_CH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, *, out: torch.Tensor
) -> torch.Tensor:
    """The logits, written into the first columns of ``out`` [C, P], which are returned; the others never win: -inf."""
    out[:, len(weight_VH) :] = float("-inf")
    scores_CV = out[:, : len(weight_VH)]
    if bias_V is None:
        return torch.mm(hidden_CH, weight_VH.T, out=scores_CV)
    return torch.addmm(bias_V, hidden_CH, weight_VH.T, out=scores_CV)


class _Sum:
    """A sum of products over chunks: in fp32 if there are several, because 16 bits would lose what is small."""

    def __init__(self, *, several: bool) -> None:
        self.total: torch.Tensor | None = None
        self.several = several

    def add(self, left: torch.Tensor, right: torch.Tensor) -> None:
        if self.total is None:
            product = left @ right
            self.total = product.to(torch.promote_types(product.dtype, torch.float32)) if self.several else product
        elif self.total.dtype == left.dtype:
            self.total.addmm_(left, right)
        else:
            self.total.add_(left @ right)


def _split(whole: torch.Tensor | None, size: int, rows: int) -> tuple[torch.Tensor | None, ...]:
    return (None,) * -(-rows // size) if whole is None else torch.split(whole, size)


def _as(gradient: torch.Tensor | None, dtype: torch.dtype, *, flat: bool = False) -> torch.Tensor | None:
    if gradient is None:
        return None
    return (gradient[:, 0] if flat else gradient).to(dtype)


@functools.cache
def _losses_of_chunks(kind: str, vocab: int, smoothing: float, z_loss: float, needed: bool) -> ChunkLosses:
    """``chunk_losses`` with its options; on a GPU as a few kernels instead of a dozen, if Triton is there."""

    fused = kind == "cuda" and importlib.util.find_spec("triton") is not None

    def losses(scores_CP: torch.Tensor, labels_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return chunk_losses(scores_CP, labels_C, vocab, smoothing, z_loss, needed, fused)

    return torch.compile(losses, dynamic=True) if fused else losses


_pretended: list[str] = []


@contextmanager
def traced() -> Iterator[None]:
    """Inside it, the head keeps and allocates what it would on a GPU, without computing: for train/trace.py."""
    _pretended.append("cuda")
    try:
        yield
    finally:
        _pretended.pop()


def _traced_losses(scores_CP: torch.Tensor, labels_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the fused kernels allocate: two scalars."""
    nothing = scores_CP.new_zeros((), dtype=torch.float32)
    return nothing, nothing.clone()


def chunk_losses(
    scores_CP: torch.Tensor,
    labels_C: torch.Tensor,
    vocab: int,
    smoothing: float,
    z_loss: float,
    needed: bool,
    fused: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the two losses; ``scores_CP`` becomes the gradient of the second by itself (if ``needed``).

    With p the softmax, Z its denominator, a the smoothing and z the weight of the z-loss:
    objective = (1 - a) * -log p[target] + a * mean of -log p + z * log(Z)^2, whose gradient is
    (1 + 2 z log Z) p - a / V - (1 - a) at the target. Columns beyond ``vocab`` hold -inf, then nothing of use.
    """
    exact = torch.promote_types(scores_CP.dtype, torch.float32)
    target_C = scores_CP.gather(1, labels_C[:, None])[:, 0].to(exact)
    if exact == scores_CP.dtype and not fused:
        log_p_CP = torch.log_softmax(scores_CP, -1, out=scores_CP)
    else:
        log_p_CP = torch.log_softmax(scores_CP, -1, dtype=exact)
    at_target_C = log_p_CP.gather(1, labels_C[:, None])[:, 0]
    nll = objective = -at_target_C.sum()
    if smoothing:
        objective = (1 - smoothing) * nll - smoothing * log_p_CP[:, :vocab].mean(-1).sum()
    if z_loss:
        log_z_C = target_C - at_target_C
        objective = objective + z_loss * log_z_C.square().sum()
    if not needed:
        return nll, objective
    grad_CP = log_p_CP.exp_()
    if z_loss:
        grad_CP.mul_((1 + 2 * z_loss * log_z_C)[:, None])
    if smoothing:
        grad_CP.sub_(smoothing / vocab)
    if fused:  # one more comparison per element, and the gradient is never written in fp32
        at_target_CP = torch.arange(scores_CP.shape[1], device=labels_C.device) == labels_C[:, None]
        grad_CP = torch.where(at_target_CP, grad_CP - (1 - smoothing), grad_CP)
    else:
        grad_CP[torch.arange(len(labels_C), device=labels_C.device), labels_C] -= 1 - smoothing
    if grad_CP is not scores_CP:
        scores_CP.copy_(grad_CP)
    return nll, objective
