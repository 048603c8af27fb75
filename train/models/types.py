"""The facts about a model family that its transformers class does not tell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    model_type: str
    """transformers' name of the architecture."""
    block_class: str
    """Class name of one transformer block: the unit of activation checkpointing."""
    lora_targets: tuple[str, ...]
    """All linear layers of a block, by the last part of their names."""
    packing: bool = True
    """Samples of a packed row can be isolated."""
    interface: bool = True
    """Attention goes through transformers' AttentionInterface, so that backends can be exchanged."""
    soft_cap: bool = False
    """Attention scores s become cap * tanh(s / cap) (Gemma 2, section 2). A kernel that cannot do so is refused."""
    reason: str = ""
    """Why not, where ``packing`` or ``interface`` is False; completes "a model of type X, ..."."""
    dropouts: tuple[str, ...] = ()
    """Config keys of dropout probabilities. Training sets them to 0: the loss is one function of the batch."""
    position_limit: str = ""
    """Config key of the longest sample the model can represent at all; empty if positions are computed."""
    fan_in_fan_out: bool = False
    """Linear layers store their weight transposed (GPT-2's Conv1D)."""
