"""What the blocks of a model keep for the backward pass, under the work of one micro-batch.

Each family counts the tensors of its own block (train/families/); what is true of every family is added here.
"""

from __future__ import annotations

from dataclasses import replace

from train.families import Config, Kept, Shape, Work, family


def kept_by_block(model: Config, shape: Shape, work: Work) -> Kept:
    """The ledger of one block of ``model`` (the Hugging Face config that ``shape`` was made from).

    Where ranks share a row, attention keeps what came from the other ranks and no input of a linear layer.
    """
    kind = family(model["model_type"])
    kept = kind.kept(kind.filled(model), shape, work)
    return kept if work.slices == 1 else replace(kept, inputs=(*kept.inputs, *kept.shared), shared=())


def block_bytes(kept: Kept, work: Work) -> float:
    """Bytes per token that one block keeps. Adapters keep their inner product; dropout a mask and its own output."""
    if work.adapted is None:
        return kept.always + kept.norm_weights + work.element * sum(elements for elements, _ in kept.inputs)
    total = kept.always
    for elements, readers in (*kept.inputs, *kept.shared):
        adapted = [name for name in readers if name in work.adapted]
        own = (elements, readers) in kept.inputs
        if work.dropout:
            total += len(adapted) * elements * (1 + work.element)
        elif adapted and own:
            total += elements * work.element
        total += len(adapted) * work.rank * work.element
    return total
