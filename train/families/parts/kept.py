"""What one block keeps for its backward pass, in the same words for every family.

The formulas of the families count the tensors of transformers' modelling files (models/llama, qwen3, olmo2, gemma2,
gemma3, phi, phi3, gpt2, gpt_neox, bloom of 5.x), operator by operator, as autograd keeps them; train/trace.py runs
those files on fake tensors, and the tests hold the two together.

Symbols as in Korthikanti et al. 2022 (Reducing Activation Recomputation, section 4), where they exist: h hidden width,
i inner width of the MLP, a heads, V vocabulary, T tokens of the micro-batch, n of them with logits, s bytes per element
of the compute dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from train.families.parts.shape import Role, Shape

Norm = Literal["rms", "rms32", "layer"]
"""``rms`` scales in the compute dtype (Llama), ``rms32`` in fp32 (OLMo 2, Gemma), ``layer`` is one fused operator."""
RMS_MOMENT = 24
"""Bytes per token and unit of width in the backward of an RMSNorm in fp32: its fp32 input and five fp32 tensors."""
ATTENTION_IN: tuple[Role, ...] = ("query", "key", "value", "qkv")
MLP_IN: tuple[Role, ...] = ("mlp_in", "gate_up")

Input = tuple[int, tuple[str, ...]]
"""An input of linear layers: its elements per token, and the names of the layers that read it."""


@dataclass(frozen=True)
class Kept:
    """What one block keeps for its backward pass, in bytes per token unless said otherwise."""

    always: float
    norm_weights: float
    """Normalised inputs, kept only where the weights of the norms are trained."""
    inputs: tuple[Input, ...]
    """Inputs of linear layers; kept if one of the layers that read them is trained or adapted."""
    shared: tuple[Input, ...]
    """The same, for inputs that something else in the block keeps anyway."""
    first: float
    """Part of ``always`` that the first block does not keep when everything before it is frozen."""
    entry: float
    """What a block costs beyond the rest when it is computed again."""
    inner: int
    """i."""
    products: int
    """Tensors of width i that the backward of the activation function adds at its worst moment."""
    ending: float = 0.0
    """What the backward of a norm at the block's end adds, while the whole block is still kept."""
    rotary: float = 0.0
    """Cosines and sines, which all blocks of the model share."""


@dataclass(frozen=True)
class Work:
    """What is trained and computed, as far as activations depend on it."""

    tokens: int
    logits: int
    """Tokens with logits."""
    row: int
    """Longest row: attention without a flash kernel keeps a matrix of its square."""
    element: int
    adapted: tuple[str, ...] | None = None
    """Names of the linear layers with adapters; None: everything is trained."""
    rank: int = 0
    dropout: float = 0.0
    tables: bool = False
    """Embedding and head are trained beside the adapters, because they have new rows."""
    chunk: int = 0
    """Positions whose logits are alive at once (train/objectives/head.py); 0: all of them, and their loss apart from
    the head."""
    slices: int = 1
    """Ranks that share a row (compute.sequence_parallel): ``tokens`` are of one slice."""


def read_by(shape: Shape, width: int, *roles: Role) -> Input:
    """A tensor of ``width`` that the layers of ``roles`` read."""
    return width, tuple(linear.name for linear in shape.linears if linear.role in roles)


def rotary(shape: Shape, element: int, *, pairs: int = 1, share: float = 1.0) -> float:
    """Bytes per token of ``pairs`` of cosines and sines for the rotated ``share`` of a head's width."""
    return float(pairs * 2 * element * shape.query // shape.heads * share)


def key_repeats(key_heads: int, slices: int) -> int:
    """How often each key head is sent to the ``slices`` ranks of a row: the least that gives all of them whole heads.

    The number of ranks and of key heads divide that of the query heads, and so does their least common multiple.
    """
    return math.lcm(key_heads, slices) // key_heads


def sent(shape: Shape, slices: int) -> int:
    """Width of the keys that attention keeps: that of the model, or more where heads are sent to several ranks."""
    return shape.key * key_repeats(shape.key_heads, slices)
