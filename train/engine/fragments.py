"""Where the full-precision weights and Adam moments of this rank lie, under every ZeRO stage, as plain views.

A fragment is a contiguous range of one flattened parameter that this rank owns. Together the fragments of all ranks
cover every trainable parameter exactly once (stage 0: every rank holds everything, and whole parameters are dealt
out round-robin so that they are written once). Checkpoints are written from fragments and read back into
fragments, so they do not depend on the number of ranks or the stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    name: str
    """Canonical parameter name."""
    start: int
    """First element of the flattened parameter that this rank owns."""
    weight: torch.Tensor
    """fp32 view, 1-D; writing to it changes the master weight."""
    moments: dict[str, torch.Tensor]
    """``exp_avg`` and ``exp_avg_sq``, fp32 views of the same length; empty before the first step."""

    @property
    def numel(self) -> int:
        return self.weight.numel()


def flat_states(optimizer: Any) -> list[torch.Tensor]:
    """The tensors DeepSpeed hands to the base optimizer, in group order."""
    for attribute in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, attribute):
            return list(getattr(optimizer, attribute))
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def base_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's wrapper (or the optimizer itself, stage 0)."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, torch.optim.Optimizer)
    return inner


def owned_fragments(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: Any, *, rank: int, world: int, every: bool = False
) -> Iterator[Fragment]:
    """This rank's fragments in the order of ``parameters``; ``every``: at stage 0, all parameters and not a share."""
    states = base_optimizer(optimizer).state
    for index, (name, parameter) in enumerate(parameters.items()):
        if hasattr(parameter, "ds_id"):
            found = _stage3(parameter, optimizer, rank)
        elif hasattr(parameter, "_hp_mapping"):
            found = _stage12(parameter, optimizer)
        elif every or index % world == rank:
            found = (parameter, 0, 0, parameter.numel())
        else:
            found = None
        if found is not None:
            flat, offset, start, numel = found
            moments = {
                key: states[flat][key].view(-1).narrow(0, offset, numel)
                for key in MOMENTS
                if key in states.get(flat, {})
            }
            yield Fragment(name, start, flat.data.view(-1).narrow(0, offset, numel), moments)


def _stage12(parameter: Any, optimizer: Any) -> tuple[torch.Tensor, int, int, int] | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    flat = flat_states(optimizer)[mapping.param_group_index]
    there, here = mapping.hp_fragment_address, mapping.lp_fragment_address
    return flat, there.start, here.start, here.numel


def _stage3(parameter: Any, optimizer: Any, rank: int) -> tuple[torch.Tensor, int, int, int] | None:
    group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = rank * length
    numel = min(length, parameter.ds_numel - start)  # the last partitions carry padding
    if numel <= 0:
        return None
    return optimizer.fp32_partitioned_groups_flat[group], offset, start, numel
