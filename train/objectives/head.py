"""Computes the head and its loss one chunk of positions at a time, and the gradient in the same pass.

Only one chunk of logits exists at any moment, in one buffer, which holds first the scores and then their gradient
(Wijmans et al. 2024, Cut Your Losses, section 3; Hsu et al. 2024, Liger Kernel, section 3.2: the gradient of a
cross-entropy follows directly from its softmax). Nothing is computed twice, and memory does not grow with the targets.
Rows of the buffer begin at multiples of 64 elements: without this, products over GPT-2's vocabulary of 50,257 took 1.5
times as long on a CPU, and a GPU's matrix units also need aligned rows.

The code calls the head module itself, with a replaced ``forward``, so that the module's hooks still run: ZeRO-3's hooks
gather its weight.

Shape suffixes: T positions of the row, N positions with targets, C positions in a chunk, H hidden width, V vocabulary,
P the vocabulary rounded up to a multiple of 64.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from conf.errors import InternalError
from conf.schema import SftObjective
from conf.whole_numbers import ceil_div
from train.batches.batch import Predicted
from train.plan.chunks import chunk_size, padded

ChunkLosses = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]
Losses = tuple[torch.Tensor, torch.Tensor]
"""Sum of -log p(target) and of what is minimised, fp32 scalars; the second with a graph."""


def plain_head(model: nn.Module) -> nn.Linear | None:
    """The output layer of ``model`` if its output is the logits, unchanged: no adapter, no soft cap. Else None."""
    model = getattr(model, "module", model)  # DeepSpeed's engine has another config, which lacks the cap
    find: Callable[[], nn.Module] | None = getattr(model, "get_output_embeddings", None)
    head = find() if find else None
    capped = getattr(getattr(model, "config", None), "final_logit_softcapping", None)
    return head if type(head) is nn.Linear and not capped else None


@contextmanager
def losses_for_logits(head: nn.Linear, predicted: Predicted, loss: SftObjective) -> Iterator[None]:
    """Inside the context, ``head`` called with hidden states [1, T, H] returns the two losses, [2], not logits.

    ``predicted``: the positions that predict a target, each once, and the token and weight of each target.
    """

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        return torch.stack(head_losses(hidden[0], head.weight, head.bias, predicted, loss))

    assert "forward" not in vars(head), "the head's forward was already replaced"
    head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward


def head_losses(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    predicted: Predicted,
    loss: SftObjective,
) -> Losses:
    """The losses of ``sft`` over the logits hidden[places] @ weight.T + bias, which never exist all at once."""
    needed = torch.is_grad_enabled()
    nll, objective = _HeadLosses.apply(hidden_TH, weight_VH, bias_V, predicted, loss, needed)  # type: ignore[no-untyped-call]
    return nll, objective


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        predicted: Predicted,
        loss: SftObjective,
        needed: bool,
    ) -> Losses:
        wants = [needed and want for want in ctx.needs_input_grad[:3]]
        places_N, labels_N, weights_N = predicted.places, predicted.ids, predicted.weights
        hidden_NH = hidden_TH.index_select(0, places_N)
        kind = _pretended[-1] if _pretended else hidden_NH.device.type
        vocab, size = len(weight_VH), chunk_size(len(labels_N), len(weight_VH), kind)
        grad_h = torch.empty_like(hidden_NH) if wants[0] else None
        parts_w, parts_b = (_Sum(several=size < len(labels_N)) if want else None for want in wants[1:])
        options = (loss.label_smoothing, loss.z_loss, any(wants))
        losses_of = _traced_losses if _pretended else _losses_of_chunks(kind, vocab, *options)
        nll, objective = (hidden_NH.new_zeros((), dtype=torch.float32) for _ in range(2))
        buffer = hidden_NH.new_empty(size, padded(vocab))
        for hidden_CH, labels_C, weights_C, out_CH in zip(
            torch.split(hidden_NH, size),
            torch.split(labels_N, size),
            _split(weights_N, size, len(labels_N)),
            _split(grad_h, size, len(labels_N)),
            strict=True,
        ):
            scores_CP = buffer[: len(labels_C)]
            scores_CV = _scores(hidden_CH, weight_VH, bias_V, out=scores_CP)
            chunk_nll, chunk_objective = losses_of(scores_CP, labels_C, weights_C)  # scores_CP becomes the gradient
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
            raise InternalError("the loss was differentiated twice, but the first pass scaled its gradient in place")
        gradients, ctx.gradients = ctx.gradients, None
        hidden, weight, bias = (None if each is None else each.mul_(scale) for each in gradients)
        if hidden is not None:
            # Copied, not added: every position occurs once, and atomic sums have no fixed order on a GPU.
            hidden = hidden.new_zeros(ctx.rows, hidden.shape[1]).index_copy_(0, ctx.saved_tensors[0], hidden)
        return hidden, _as(weight, ctx.dtype), _as(bias, ctx.dtype, flat=True), None, None, None


def _scores(
    hidden_CH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, *, out: torch.Tensor
) -> torch.Tensor:
    """Write the logits into the first V columns of ``out`` [C, P] and return these; the other columns become -inf."""
    out[:, len(weight_VH) :] = float("-inf")
    scores_CV = out[:, : len(weight_VH)]
    if bias_V is None:
        return torch.mm(hidden_CH, weight_VH.T, out=scores_CV)
    return torch.addmm(bias_V, hidden_CH, weight_VH.T, out=scores_CV)


class _Sum:
    """A sum of products over chunks: in fp32 for several chunks, because 16 bits would lose small terms."""

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
    return (None,) * ceil_div(rows, size) if whole is None else torch.split(whole, size)


def _as(gradient: torch.Tensor | None, dtype: torch.dtype, *, flat: bool = False) -> torch.Tensor | None:
    if gradient is None:
        return None
    return (gradient[:, 0] if flat else gradient).to(dtype)


@functools.cache
def _losses_of_chunks(kind: str, vocab: int, smoothing: float, z_loss: float, needed: bool) -> ChunkLosses:
    """``chunk_losses`` with its options; on a GPU with Triton, compiled into a few kernels instead of a dozen."""

    fused = kind == "cuda" and importlib.util.find_spec("triton") is not None
    options = ChunkOptions(vocab, smoothing, z_loss, needed, fused)

    def losses(
        scores_CP: torch.Tensor, labels_C: torch.Tensor, weights_C: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return chunk_losses(scores_CP, labels_C, weights_C, options)

    return torch.compile(losses, dynamic=True) if options.fused else losses


_pretended: list[str] = []


@contextmanager
def traced() -> Iterator[None]:
    """Inside the context, the head allocates and keeps the same tensors as on a GPU but computes nothing.

    train/trace.py uses it.
    """
    _pretended.append("cuda")
    try:
        yield
    finally:
        _pretended.pop()


def _traced_losses(
    scores_CP: torch.Tensor, labels_C: torch.Tensor, weights_C: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Allocate the same tensors as the fused kernels: two scalars."""
    nothing = scores_CP.new_zeros((), dtype=torch.float32)
    return nothing, nothing.clone()


@dataclass(frozen=True)
class ChunkOptions:
    vocab: int
    smoothing: float = 0.0
    z_loss: float = 0.0
    needs_gradient: bool = True
    fused: bool = False
    """Written for torch.compile: one more comparison per element, but no gradient in fp32."""


def chunk_losses(
    scores_CP: torch.Tensor, labels_C: torch.Tensor, weights_C: torch.Tensor | None, options: ChunkOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums of the two losses; if needed, ``scores_CP`` becomes the gradient of the second by the scores.

    With p the softmax, Z its denominator, a the smoothing, z the weight of the z-loss and w the target's weight:
    objective = sum of w ((1 - a) * -log p[target] + a * mean of -log p + z * log(Z)^2), whose gradient is
    w ((1 + 2 z log Z) p - a / V - (1 - a) at the target). Columns beyond ``vocab`` hold -inf, then undefined values.
    ``weights_C``: fp32; None: all weights are 1.
    """
    smoothing, z_loss = options.smoothing, options.z_loss
    exact = torch.promote_types(scores_CP.dtype, torch.float32)
    target_C = scores_CP.gather(1, labels_C[:, None])[:, 0].to(exact)
    if exact == scores_CP.dtype and not options.fused:
        log_p_CP = torch.log_softmax(scores_CP, -1, out=scores_CP)
    else:
        log_p_CP = torch.log_softmax(scores_CP, -1, dtype=exact)
    at_target_C = log_p_CP.gather(1, labels_C[:, None])[:, 0]
    nll = objective = -_weighted(at_target_C, weights_C)
    if smoothing:
        means_C = log_p_CP[:, : options.vocab].mean(-1)
        objective = (1 - smoothing) * nll - smoothing * _weighted(means_C, weights_C)
    if z_loss:
        log_z_C = target_C - at_target_C
        objective = objective + z_loss * _weighted(log_z_C.square(), weights_C)
    if not options.needs_gradient:
        return nll, objective
    grad_CP = log_p_CP.exp_()
    if z_loss:
        grad_CP.mul_((1 + 2 * z_loss * log_z_C)[:, None])
    if smoothing:
        grad_CP.sub_(smoothing / options.vocab)
    if options.fused:
        at_target_CP = torch.arange(scores_CP.shape[1], device=labels_C.device) == labels_C[:, None]
        grad_CP = torch.where(at_target_CP, grad_CP - (1 - smoothing), grad_CP)
    else:
        grad_CP[torch.arange(len(labels_C), device=labels_C.device), labels_C] -= 1 - smoothing
    if weights_C is not None:
        grad_CP.mul_(weights_C[:, None])
    if grad_CP is not scores_CP:
        scores_CP.copy_(grad_CP)
    return nll, objective


def _weighted(values_C: torch.Tensor, weights_C: torch.Tensor | None) -> torch.Tensor:
    return values_C.sum() if weights_C is None else (values_C * weights_C).sum()
