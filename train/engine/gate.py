"""Asks whether an update is made where DeepSpeed asks whether the gradients are finite: once the norm is known.

A refused norm is handed back as one that is not finite, so a refusal takes DeepSpeed's own way out of a step: no
weight, moment or count changes, and the gradients are cleared.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from deepspeed.runtime.utils import combine_grad_norm_groups, get_global_norm_of_tensors

Accept = Callable[[float], bool]
"""Whether the update with this finite global gradient norm is made; the same answer on every rank."""


def always(norm: float) -> bool:
    return True


def not_of_gate(record: logging.LogRecord) -> bool:
    """Leaves out DeepSpeed's line about non-finite gradients: refused ones are finite, and the run says why."""
    return "OVERFLOW! Skipping step" not in record.getMessage()


class Gate:
    """Stands in the step of DeepSpeed's ``optimizer`` (stages 1 to 3)."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.accept: Accept = always
        self.known: float | None = None
        """The norm of this step, if it need not be taken."""
        self.refused: float | None = None
        """The norm of the update that was refused in this step."""
        self.asked = False
        """Whether this step has come by."""
        if hasattr(optimizer, "get_grads_for_norm"):  # stage 1 in bf16: its module takes the norm
            gradients = optimizer.get_grads_for_norm
            optimizer.get_grads_for_norm = lambda for_clipping=False: (
                gradients(for_clipping=True) if for_clipping else self._passed_gradients(*gradients())
            )
        elif hasattr(optimizer, "scaled_global_norm"):  # stages 1 and 2
            whole = optimizer.scaled_global_norm
            optimizer.scaled_global_norm = lambda: self._passed(self._known() if self.known is not None else whole())
        elif hasattr(optimizer, "_get_norm_groups"):  # stage 3: norms of its groups, which it combines itself
            groups = optimizer._get_norm_groups
            optimizer._get_norm_groups = lambda: self._passed_groups(
                [self._known()] if self.known is not None else groups()
            )

    def begin(self, accept: Accept, known: float | None = None) -> None:
        """A step begins. ``known``: the norm of its gradients, of which DeepSpeed then takes none: it copies them to
        fp64. Stages 2 and 3."""
        self.accept, self.known, self.refused, self.asked = accept, known, None, False

    def clear(self) -> None:
        """Forget the gradients of a step without an update.

        With offload, DeepSpeed 0.19.8 leaves them in the buffers of stages 1 and 2 and adds those of the next step, so
        one NaN would skip every later step.
        """
        held = getattr(self._optimizer, "averaged_gradients", None)
        if getattr(self._optimizer, "cpu_offload", False) and held:
            for group in held:
                held[group] = None

    def _known(self) -> torch.Tensor:
        assert self.known is not None
        return torch.tensor(self.known, device=self._optimizer.device)

    def _passed(self, norm: torch.Tensor) -> torch.Tensor:
        self.asked, value = True, float(norm)
        if 0 <= value < math.inf and not self.accept(value):
            self.refused = value
            return torch.full_like(norm, math.inf)
        return norm

    def _passed_groups(self, norms: list[torch.Tensor]) -> list[torch.Tensor]:
        self._passed(combine_grad_norm_groups(norms))
        return norms if self.refused is None else [torch.full_like(norms[0], math.inf)]

    def _passed_gradients(self, gradients: list[torch.Tensor], experts: Any) -> tuple[list[torch.Tensor], Any]:
        norm = get_global_norm_of_tensors(gradients)  # as DeepSpeed does next: the same number a second time
        self._passed(norm)
        return (gradients if self.refused is None else [torch.full_like(norm, math.inf)]), experts
