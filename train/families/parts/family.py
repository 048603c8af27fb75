"""The facts of a model family that its config.json does not tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from train.families.parts.kept import Kept, Norm, Work
from train.families.parts.shape import Config, Keys, Layer, Role, Shape

Architecture = Literal["causal", "seq2seq", "encoder", "image_text"]


@dataclass(frozen=True)
class Family:
    model_type: str
    """transformers' name of the family; the name of the file."""
    block_class: str
    """Class name of one transformer block: the unit of activation checkpointing."""
    layers: tuple[Layer, ...]
    """All linear layers of a block, each with its role."""
    shape: Callable[[Config], Shape]
    """The sizes of a model, from its config after ``filled``. Raises KeyError for a size that the config lacks."""
    kept: Callable[[Config, Shape, Work], Kept]
    """What one block of a model keeps for the backward pass, from its config after ``filled``."""
    architecture: Architecture = "causal"
    """``train.families.family`` refuses every other architecture: no objective trains it."""
    norm: Norm = "rms"
    """How the last norm computes."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values that transformers' config class gives to keys that a config.json leaves out."""
    keys: Keys = field(default_factory=Keys)
    packing: bool = True
    """Attention can keep the samples of a packed row apart."""
    interface: bool = True
    """Attention goes through transformers' AttentionInterface, so that backends can be exchanged."""
    soft_cap: bool = False
    """Attention scores s become cap * tanh(s / cap) (Gemma 2, section 2). A backend that cannot do so is refused."""
    reason: str = ""
    """Why ``packing`` or ``interface`` is False; completes "a model of type X, ..."."""
    dropouts: tuple[str, ...] = ()
    """Config keys of dropout probabilities. Training sets them to 0: the loss is a function of the batch alone."""
    position_limit: str = ""
    """Config key of the longest sample that the model can represent; empty if the model computes its positions."""
    fan_in_fan_out: bool = False
    """Linear layers store their weight transposed (GPT-2's Conv1D)."""

    def filled(self, config: Config) -> Config:
        """``config`` with the class's own values for the keys that it leaves out."""
        return {**self.defaults, **config}

    def of_role(self, *roles: Role) -> tuple[Layer, ...]:
        """The linear layers of a block that have one of ``roles``."""
        return tuple(layer for layer in self.layers if layer.role in roles)

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """The linear layers of a block by the last part of their names, each name once."""
        return tuple(dict.fromkeys(layer.name for layer in self.layers))
