"""Records what the modules of a model take and give, sample by sample, while a step is computed in any division.

Hooks see the tensors of a micro-batch. Where each sample's tokens lie in it is known from the batch, so the records of
any two divisions of a global batch can be compared, whatever the packing, shared prefixes, micro-batches and ranks.

Shape suffixes: T tokens of a micro-batch, N tokens of a sample, W width of a module's input or output.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from data_prep.stream.stream import GlobalStep
from train.batches.batch import Batch
from train.objectives import Objective, Sums
from train.tuning import trainable

Event = tuple[str, Literal["in", "out"]]
"""A module by name, and its first input or its output."""


@dataclass
class Micro:
    """A micro-batch on one rank."""

    places: dict[int, torch.Tensor]
    """uid -> int64 [N]: where the sample's tokens are, those of its shared prefix included."""
    tensors: dict[Event, torch.Tensor] = field(default_factory=dict)
    """[T, W] on the CPU, fp32 or fp64, in the order of the forward pass; only what has one vector per token."""
    objective: float = 0.0
    scale: float = 0.0
    """The gradient of the loss by ``objective``, with which the backward pass began."""


@dataclass
class Record:
    """A step on one rank."""

    micros: list[Micro] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    """What this rank's backward passes gave, added over its micro-batches; fp32 or fp64, on the CPU."""
    reduced: dict[str, torch.Tensor] = field(default_factory=dict)
    """What the engine made of all ranks' gradients."""
    head: str = ""
    """The name of the output layer."""
    divided_by: int = 1
    """What the engine divides the ranks' sum of gradients by."""


@dataclass
class Watched:
    """``objective`` of ``model``, which records every micro-batch that it computes."""

    objective: Objective
    record: Record
    now: Micro | None = None
    """The micro-batch whose forward pass runs; recomputation in the backward pass is not recorded."""
    flat: tuple[int, int] = (0, 0)
    """Rows and tokens per row of ``now``."""

    def denominator(self, step: GlobalStep) -> float:
        return self.objective.denominator(step)

    def sums(self, model: nn.Module, batch: Batch) -> Sums:
        rows, tokens = batch.input_ids.shape
        self.now, self.flat = Micro(places_of(batch)), (rows, tokens)
        sums = self.objective.sums(model, batch)
        micro, self.now = self.now, None
        micro.objective = float(sums.objective.detach())
        sums.objective.register_hook(partial(_keep_scale, micro))  # type: ignore[no-untyped-call]
        self.record.micros.append(micro)
        return sums

    def saw(self, event: Event, found: object) -> None:
        """Keep the first tensor of ``found`` that has a vector for every token."""
        if self.now is None or event in self.now.tensors:
            return
        for each in _tensors(found):
            if each.shape[:2] == self.flat or each.shape[:1] == (self.flat[0] * self.flat[1],):
                vectors = each.detach().reshape(self.flat[0] * self.flat[1], -1)
                self.now.tensors[event] = vectors.to("cpu", torch.promote_types(vectors.dtype, torch.float32))
                return


def watch(model: nn.Module, objective: Objective) -> Watched:
    """Hooks on every module of ``model`` and on its trainable parameters; pass the result on as the objective."""
    watched = Watched(objective, Record())
    find: Callable[[], nn.Module] | None = getattr(model, "get_output_embeddings", None)
    head = find() if find else None
    for name, module in model.named_modules():
        if module is head:
            watched.record.head = name
        module.register_forward_pre_hook(partial(_before, watched, name), with_kwargs=True)
        module.register_forward_hook(partial(_after, watched, name))
    for name, parameter in trainable(model).items():
        parameter.register_hook(partial(_add, watched.record.gradients, name))  # type: ignore[no-untyped-call]
    return watched


def _before(watched: Watched, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    watched.saw((name, "in"), (*args, *kwargs.values()))


def _after(watched: Watched, name: str, _: nn.Module, __: object, output: object) -> None:
    watched.saw((name, "out"), output)


def _add(gradients: dict[str, torch.Tensor], name: str, gradient: torch.Tensor) -> None:
    own = gradient.detach().to("cpu", torch.promote_types(gradient.dtype, torch.float32))
    gradients[name] = gradients[name] + own if name in gradients else own.clone()


def _keep_scale(micro: Micro, gradient: torch.Tensor) -> None:
    micro.scale = float(gradient)


def _tensors(found: object) -> list[torch.Tensor]:
    several: Sequence[object] = found if isinstance(found, tuple | list) else (found,)
    return [each for each in several if isinstance(each, torch.Tensor) and each.is_floating_point()]


def places_of(batch: Batch) -> dict[int, torch.Tensor]:
    """Where the tokens of each sample of ``batch`` are; a slice of a row has the places of the whole row."""
    if batch.segments is None:
        assert batch.attention_mask is not None
        longest = batch.input_ids.shape[1]
        lengths = batch.attention_mask.sum(1).tolist()
        each = [torch.arange(row * longest, row * longest + length) for row, length in enumerate(lengths)]
        return dict(zip(batch.uids, each, strict=False))
    if batch.keys is None:
        index, bounds = torch.arange(int(batch.segments[-1])), batch.segments.tolist()
    else:
        index, bounds = batch.keys.index.cpu(), batch.keys.segments.tolist()
    pieces = [index[start:end] for start, end in itertools.pairwise(bounds)]
    return dict(zip(batch.uids, pieces, strict=False))
