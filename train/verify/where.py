"""Names the place at which a case leaves plain torch: the first module whose output differs, or what follows them all.

Compared in the order of the computation, so that the first difference is where the mistake is and not where it is felt:
inputs and outputs of every module, sample by sample; the loss; the factor with which it enters the backward pass; the
gradients that this backward pass gives, added over ranks; the gradients that the engine makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from train.verify.distance import errors
from train.verify.proof import Case, Gradients, Proof, reference_record, run_record
from train.verify.watch import Event, Micro, Record

ROUNDINGS = 2
"""A difference counts beyond the comparison's bound and this many times plain torch's own rounding at that place."""

Samples = dict[int, torch.Tensor]
"""uid -> [N, W]: the vectors of a sample's tokens."""


@dataclass(frozen=True)
class Step:
    """A global batch, put together from the records of all ranks."""

    tensors: Mapping[Event, Samples]
    uids: frozenset[int]
    objective: float
    scales: Sequence[Sequence[float]]
    """Rank by rank, micro-batch by micro-batch."""
    gradients: Gradients
    """Of all ranks' backward passes, added and divided as the engine is to do."""
    reduced: Gradients
    head: str
    divided_by: int = 1


def whole(records: Sequence[Record], slices: int = 1) -> Step:
    """The step of ranks that record ``records``, of which ``slices`` consecutive ones share a row."""
    tensors: dict[Event, Samples] = {}
    for first in range(0, len(records), slices):
        for parts in zip(*(record.micros for record in records[first : first + slices]), strict=True):
            _add_samples(tensors, parts)
    sums: Gradients = {}
    for record in records:
        for name, value in record.gradients.items():
            sums[name] = sums[name] + value if name in sums else value
    micros = [micro for record in records for micro in record.micros]
    return Step(
        tensors=tensors,
        uids=frozenset(uid for micro in micros for uid in micro.places),
        objective=sum(micro.objective for micro in micros),
        scales=[[micro.scale for micro in record.micros] for record in records],
        gradients={name: value / records[0].divided_by for name, value in sums.items()},
        reduced=records[0].reduced,
        head=records[0].head,
        divided_by=records[0].divided_by,
    )


def _add_samples(tensors: dict[Event, Samples], parts: Sequence[Micro]) -> None:
    """Add a micro-batch to ``tensors``; ``parts`` are the slices of its rows, in order."""
    for event in parts[0].tensors:
        if any(event not in part.tensors for part in parts):
            continue
        vectors = torch.cat([part.tensors[event] for part in parts])
        for uid, places in parts[0].places.items():
            tensors.setdefault(event, {})[uid] = vectors[places]


def locate(proof: Proof, case: Case, folder: Path, allowed: float) -> str:
    """Compute ``case`` and plain torch once more with every module watched; return a sentence.

    ``allowed``: the bound of the comparison that failed.
    """
    wanted = whole([reference_record(proof.in_fp32())])
    rounded = proof.cfg.model.dtype != "fp32"
    plain = whole([reference_record(proof) if rounded else reference_record(proof.in_fp32(), double=True)])
    found = whole(run_record((proof, case), folder), case.slices)
    return f"cut up as '{case.label}', {name(found, wanted, plain, allowed)}"


def name(found: Step, wanted: Step, plain: Step, allowed: float) -> str:
    """Where ``found`` first differs from ``wanted``, in words. ``plain``: plain torch with another rounding."""
    gradient = _gradient(found, wanted, plain, allowed)
    place = (
        _unfed(found, wanted)
        or _module(found, wanted, plain, allowed)
        or _loss(found, wanted, plain, allowed)
        or _factor(found, wanted, allowed)
    )
    if place:
        return f"{place}{f'; {gradient}' if gradient else ''}"
    if gradient:
        return f"all modules give the same and the loss is the same; the backward pass differs: {gradient}"
    reduced = _differing(found.reduced, wanted, plain, allowed)
    if reduced:
        parameter, error = next(iter(reduced.items()))
        return (
            "all modules give the same and the ranks' own gradients add up to plain torch's; the reduction over ranks "
            f"and micro-batches differs, first in {parameter} (by {error:.1e})"
        )
    return (
        "module by module, with nothing compiled, no difference is seen; with compute.kernels=compile look there, "
        "otherwise run the command again"
    )


def _unfed(found: Step, wanted: Step) -> str:
    missing = sorted(wanted.uids - found.uids)
    if not missing:
        return ""
    return f"{len(missing)} of {len(wanted.uids)} samples reach no micro-batch, the first {missing[0]:016x}"


def _module(found: Step, wanted: Step, plain: Step, allowed: float) -> str:
    for event, samples in wanted.tensors.items():
        if event not in found.tensors:
            continue
        bound = max(allowed, ROUNDINGS * _furthest(plain.tensors[event], samples)[0])
        error, uid = _furthest(found.tensors[event], samples)
        if error > bound:
            module, side = event
            parent = module.rpartition(".")[0]
            first = module if side == "out" else f"{parent or 'the model'}, in what it computes before {module}"
            figures = f"sample {uid:016x} by {error:.1e}, allowed {bound:.1e}"
            return f"the first module whose output differs is {first} ({figures})"
    return ""


def _furthest(found: Samples, wanted: Samples) -> tuple[float, int]:
    """The largest relative difference of a sample, and its uid."""
    apart = {}
    for uid, value in wanted.items():
        other = found.get(uid)
        if other is None or other.shape != value.shape:
            apart[uid] = float("inf")
            continue
        difference = float((other.double() - value.double()).norm())
        apart[uid] = difference / max(float(value.double().norm()), 1e-30) if difference else 0.0
        apart[uid] = float("inf") if apart[uid] != apart[uid] else apart[uid]
    uid = max(apart, key=apart.__getitem__)
    return apart[uid], uid


def _loss(found: Step, wanted: Step, plain: Step, allowed: float) -> str:
    size = max(abs(wanted.objective), 1e-30)
    error, rounding = (abs(each.objective - wanted.objective) / size for each in (found, plain))
    if error <= max(allowed, ROUNDINGS * rounding):
        return ""
    head = wanted.head or "the head"
    return f"the first module whose output differs is the head, {head}, with the loss over it (by {error:.1e})"


def _factor(found: Step, wanted: Step, allowed: float) -> str:
    """A micro-batch enters with what the engine divides by, over the denominator."""
    right = wanted.scales[0][0] * found.divided_by
    for rank, scales in enumerate(found.scales):
        for index, scale in enumerate(scales):
            if abs(scale - right) > max(allowed, 1e-6) * abs(right):
                return (
                    f"all modules give the same and the loss is the same; the reduction over ranks and micro-batches "
                    f"differs: micro-batch {index} of rank {rank} enters the backward pass times {scale / right:.3g}"
                )
    return ""


def _gradient(found: Step, wanted: Step, plain: Step, allowed: float) -> str:
    """The first parameter in the order of the forward pass, and the last, at which the backward pass arrives first."""
    differing = _differing(found.gradients, wanted, plain, allowed)
    if not differing:
        return ""
    first, last = next(iter(differing)), list(differing)[-1]
    return (
        f"the first parameter whose gradient differs is {first} (by {differing[first]:.1e}); the backward pass reaches "
        f"{last} first"
    )


def _differing(found: Gradients, wanted: Step, plain: Step, allowed: float) -> dict[str, float]:
    """The gradients of ``found`` that differ beyond rounding and their errors, in the order of the forward pass."""
    apart, rounding = errors(found, wanted.reduced), errors(plain.reduced, wanted.reduced)
    modules = list(dict.fromkeys(module for module, _ in wanted.tensors))  # classes register theirs in other orders
    order = {module: place for place, module in enumerate(modules)}
    names = sorted(apart, key=lambda each: order.get(each.rpartition(".")[0], len(order)))
    return {each: apart[each] for each in names if apart[each] > max(allowed, ROUNDINGS * rounding.get(each, 0.0))}
