"""Stored state into an engine: every rank reads the share that it owns, and the library hands it to the others.

So all ranks together read a checkpoint once, whatever the stage and the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from conf.errors import StorageError
from train.engine.fragments import MOMENTS, Fragment, base_optimizer, flat_states
from train.ranks.group import Ranks

Read = Callable[[str, str, int, int], torch.Tensor]
"""``read(name, kind, start, numel)``: a 1-D fp32 range of the stored parameter ``name``. ``kind`` is ``weight``, a
moment or an extra."""


def check_shapes(parameters: Mapping[str, torch.nn.Parameter], stored: Mapping[str, list[int]]) -> None:
    """Raise StorageError (74) unless exactly these parameters are stored, in their shapes."""
    own = {name: list(getattr(p, "ds_shape", p.shape)) for name, p in parameters.items()}
    wrong = sorted(name for name in own.keys() | stored.keys() if own.get(name) != stored.get(name))
    if wrong:
        name = wrong[0]
        raise StorageError(
            f"the checkpoint does not fit this model: {len(wrong)} of its {len(own)} trained weights differ (first: "
            f"{name}, stored as {stored.get(name, 'nothing')}, here {own.get(name, 'nothing')}). Start with the "
            "versions of transformers and peft that made it, or start over with another name or run_dir"
        )


def create_moments(optimizer: Any, steps: int) -> None:
    """Moments of zeros in the base optimizer, as they are after ``steps`` updates; none before the first."""
    base = base_optimizer(optimizer)
    for flat in flat_states(optimizer):
        if not steps:
            base.state.pop(flat, None)
            continue
        on_device = flat.device if base.defaults.get("fused") else torch.device("cpu")
        old = base.state.get(flat, {})  # of an engine that has trained: new ones beside them would be twice the memory
        state = {kind: old[kind].zero_() if kind in old else torch.zeros_like(flat.data) for kind in MOMENTS}
        base.state[flat] = {"step": torch.tensor(float(steps), device=on_device), **state}
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False


def read_into(fragments: Iterable[Fragment], read: Read) -> None:
    """Read what is stored of every fragment. Not collective; raises what ``read`` raises."""
    for fragment in fragments:
        for kind, tensor in fragment.tensors.items():
            tensor.copy_(read(fragment.name, kind, fragment.start, fragment.numel))


def hand_out(optimizer: Any, held: Iterator[Fragment], ranks: Ranks) -> None:
    """Give every rank the compute weights that follow from the owned master weights. Collective, in the default group.

    ``held``: all fragments that this rank holds; used at stage 0 only, where the owner of a parameter sends its weight,
    moments and extras to all. Above it these are DeepSpeed's own calls at the end of a step.
    """
    if hasattr(optimizer, "fp16_partitioned_groups_flat"):  # stage 3: own partitions, small parameters whole everywhere
        optimizer.checkpoint_event_prologue()
        for group in range(len(optimizer.fp16_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.checkpoint_event_epilogue()
    elif hasattr(optimizer, "update_lp_params"):  # stages 1 and 2: own partitions rounded, then gathered
        optimizer.update_lp_params()
    elif ranks.world > 1:
        for index, fragment in enumerate(held):
            for tensor in fragment.tensors.values():
                dist.broadcast(tensor, src=index % ranks.world)
