"""The full-precision weights and Adam moments that this rank owns, under every ZeRO stage, as plain views.

A fragment is a contiguous range of one flattened parameter that this rank owns. Together the fragments of all ranks
cover every trainable parameter exactly once. At stage 0 every rank holds every parameter whole; there, ``share`` deals
whole parameters out to the ranks in turn, so that each is written once. Checkpoints are written from fragments and read
back into fragments, so they do not depend on the number of ranks or the stage. ``train/engine/hooks.py`` says how a
hook changes fragments after an update and how it adds further tensors to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

from train.ranks.group import Ranks

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    name: str
    """Canonical name of the parameter."""
    start: int
    """First element of the flattened parameter that this rank owns."""
    weight: torch.Tensor
    """fp32 view, 1-D; writing to it changes the master weight."""
    moments: dict[str, torch.Tensor]
    """``exp_avg`` and ``exp_avg_sq``, fp32 views of the same length; empty before the first step."""
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    """Further fp32 tensors of the same length by name, which hooks own; empty without hooks."""

    @property
    def numel(self) -> int:
        return self.weight.numel()

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that a checkpoint holds of this fragment, by kind: the weight, the moments, the extras."""
        return {"weight": self.weight, **self.moments, **self.extras}


class Place(NamedTuple):
    """Elements ``start`` to ``start + numel`` of a parameter are those of ``flat`` from ``offset`` on."""

    flat: torch.Tensor
    offset: int
    start: int
    numel: int


Extent = Literal["share", "held"]
"""Which fragments: the share that this rank writes to a checkpoint, or all that it holds (more at stage 0 only)."""


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


def owned_places(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: Any, ranks: Ranks, extent: Extent
) -> Iterator[tuple[str, Place]]:
    """Where this rank's fragments lie, with the name of their parameter, in the order of ``parameters``."""
    for index, (name, parameter) in enumerate(parameters.items()):
        place: Place | None = None
        if hasattr(parameter, "ds_id"):
            place = _stage3(parameter, optimizer, ranks.rank)
        elif hasattr(parameter, "_hp_mapping"):
            place = _stage12(parameter, optimizer)
        elif extent == "held" or index % ranks.world == ranks.rank:
            place = Place(parameter, 0, 0, parameter.numel())
        if place is not None:
            yield name, place


def fragment_at(name: str, place: Place, optimizer: Any, extras: dict[str, torch.Tensor]) -> Fragment:
    """The fragment of parameter ``name`` that lies at ``place``, as views, with the tensors that hooks own."""
    flat, offset, start, numel = place
    state = base_optimizer(optimizer).state.get(flat, {})
    moments = {kind: state[kind].view(-1).narrow(0, offset, numel) for kind in MOMENTS if kind in state}
    return Fragment(name, start, flat.data.view(-1).narrow(0, offset, numel), moments, extras)


def _stage12(parameter: Any, optimizer: Any) -> Place | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    flat = flat_states(optimizer)[mapping.param_group_index]
    there, here = mapping.hp_fragment_address, mapping.lp_fragment_address
    return Place(flat, there.start, here.start, here.numel)


def _stage3(parameter: Any, optimizer: Any, rank: int) -> Place | None:
    group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = rank * length
    numel = min(length, parameter.ds_numel - start)  # the last partitions carry padding
    if numel <= 0:
        return None
    return Place(optimizer.fp32_partitioned_groups_flat[group], offset, start, numel)
