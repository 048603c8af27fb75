"""How far gradients are from one another."""

from __future__ import annotations

from train.verify.proof import Gradients

FAINT = 0.05
"""A gradient is faint if its root mean square is below this share of the mean over all; its error is then relative to
that share."""


def errors(found: Gradients, wanted: Gradients) -> dict[str, float]:
    """The relative difference of every tensor (norm of the difference over the norm), in the order of ``wanted``.

    Infinite for a tensor that one of the two lacks.
    """
    elements = sum(value.numel() for value in wanted.values())
    average = (sum(float(value.norm()) ** 2 for value in wanted.values()) / elements) ** 0.5
    near = {
        # A gradient near zero (a bias of keys, to which a softmax hardly reacts; LoRA's A at the start) is a difference
        # of large numbers and carries their rounding, so its error is relative to at least FAINT of the average.
        name: float((found[name] - value).norm()) / max(float(value.norm()), FAINT * average * value.numel() ** 0.5)
        if name in found
        else float("inf")
        for name, value in wanted.items()
    }
    return near | {name: float("inf") for name in found if name not in wanted}


def worst(found: Gradients, wanted: Gradients) -> tuple[float, str]:
    """The largest relative difference of a tensor, and that tensor's name."""
    by_name = errors(found, wanted)
    name = max(by_name, key=by_name.__getitem__)
    return by_name[name], name


def distance(found: Gradients, wanted: Gradients) -> float:
    """Norm of the difference over the norm, over all tensors at once; infinite if tensors are missing."""
    if found.keys() != wanted.keys():
        return float("inf")
    difference = sum(float((found[name] - value).norm()) ** 2 for name, value in wanted.items())
    whole: float = (difference / sum(float(value.norm()) ** 2 for value in wanted.values())) ** 0.5
    return whole
