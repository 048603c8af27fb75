"""What a step minimises: one dataclass per objective, told apart by ``kind``; its code is train/objectives/KIND.py.

Beside its settings, each has ``FACTS``: what it needs besides the tuned model, so that the plan and the checks know it
without torch.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.schema.fields import STRICT, Fraction, SampleKind


@dataclasses.dataclass(frozen=True)
class ObjectiveFacts:
    """What an objective needs of a run. The defaults are those of a loss over text."""

    samples: SampleKind = "text"
    """The kind of samples that the corpus must hold."""
    base: Literal["unused", "frozen"] = "unused"
    """frozen: every rank holds a copy of the base as it was before tuning, with which the objective compares."""


@dataclass(frozen=True, config=STRICT)
class SftObjective:
    """Supervised fine-tuning: the weighted mean of -log p over the target tokens of the global batch.

    ``train/loss`` is that mean alone; the two options below change what is minimised and not what is reported.
    """

    FACTS: ClassVar[ObjectiveFacts] = ObjectiveFacts()

    kind: Literal["sft"] = "sft"
    z_loss: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of log(Z)^2 per target, which keeps the softmax's denominator near 1 (PaLM, section 5: 1e-4). 0: none."""
    label_smoothing: Fraction = 0.0
    """Share of each target spread evenly over the vocabulary (Szegedy et al. 2016, section 7). 0: none."""


Objective = SftObjective
"""Every objective there is, as a union: a new one is ``SftObjective | NewObjective``."""

BY_KIND = Field(discriminator="kind") if get_args(Objective) else Field()
"""What ``RunConfig`` says of ``objective``: a union of several is told apart by ``kind``."""
