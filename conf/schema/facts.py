"""The facts of a tuning method and of an attention backend that are needed before torch is imported.

They stand with the method (conf/schema/methods.py) and the backend (conf/schema/backends.py). conf/checks/, the plan
and the count of FLOPs read them, and know no method or backend by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class MethodFacts:
    """What a tuning method needs of a run. The defaults need nothing."""

    lr: float
    """Its peak learning rate where ``optim.lr`` is auto."""
    rows: Literal["any", "padded"] = "any"
    """padded: every sample in a padded row of its own, with data.pack=none."""
    window: Literal["any", "holds the sample"] = "any"
    """holds the sample: a model's sliding window must be as long as a sample with its virtual tokens."""
    no_recompute: str = ""
    """Why blocks cannot be computed again; completes "model.recompute: full would ...". Empty: they can."""
    no_weight_decay: str = ""
    """Why new weights must not decay; completes "optim.weight_decay: 0.1 would ...". Empty: they may."""
    folder: Literal["peft", "corral"] = "peft"
    """What loads the folder of an export with merge=false: PEFT, or Corral alone."""


@dataclass(frozen=True)
class BackendFacts:
    """What an attention backend can do. The defaults rule nothing out."""

    rows: Literal["any", "packed", "padded"] = "any"
    """Rows that it may be chosen for."""
    shares: bool = True
    """Samples of a row may share the prefix they begin with (data.share_prefix)."""
    exchanges: bool = True
    """Ranks may share a row (compute.sequence_parallel)."""
    dtypes: tuple[str, ...] = ("bf16", "fp32")


BACKENDS = {
    "packed": BackendFacts(rows="packed"),
    "sdpa": BackendFacts(rows="padded", shares=False, exchanges=False),
    **dict.fromkeys(
        ("flash2", "flash3", "flash4"), BackendFacts(rows="packed", shares=False, exchanges=False, dtypes=("bf16",))
    ),
}
"""Known here, so that a config is refused at once. Any other backend is judged by its own module when a run starts."""


def backend_facts(name: str) -> BackendFacts:
    return BACKENDS.get(name, BackendFacts())


class LinearSize(Protocol):
    """One linear layer of a block; train/families/parts/shape.py has the only one."""

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def inputs(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def size(self) -> int: ...


class ModelShape(Protocol):
    """The sizes of a model, as train/families/parts/shape.py documents them."""

    @property
    def hidden(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def vocab(self) -> int: ...
    @property
    def key(self) -> int: ...
    @property
    def linears(self) -> Sequence[LinearSize]: ...
    @property
    def head(self) -> str: ...
    @property
    def total(self) -> int: ...


@dataclass(frozen=True)
class Trained:
    """What a method trains in a model of some shape, in elements."""

    new: int = 0
    """Added to the model."""
    matrices: int = 0
    """Of ``new``, those that every token is multiplied by."""
    whole: int = 0
    """Of the base: trained themselves."""
    matrices_of_blocks: Literal["compute dtype", "4 bits"] = "compute dtype"
    """How the frozen matrices of the blocks are kept."""
    gradients: Literal["every matrix", "some"] = "some"
    """Which matrices of the base surely get a gradient of their own."""
    adapted: tuple[str, ...] | None = ()
    """Names of the linear layers with adapters; None: the base itself is trained."""
    rank: int = 0
    """Of the adapters."""
    dropout: float = 0.0
    """Before the adapters."""
    head: Literal["plain", "wrapped"] = "plain"
    """wrapped: the method puts something of its own in the place of the output layer."""
