"""The sizes of a model, in the same words for every family, from its config.json alone.

No torch, because ``launch`` plans without it (transformers' own config classes import it). The sizes follow
transformers' modelling files; tests compare the counts with real models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Config = Mapping[str, Any]
"""A Hugging Face config.json."""
Role = Literal["query", "key", "value", "qkv", "attention_out", "mlp_in", "gate_up", "mlp_out"]
"""What a linear layer of a block computes. ``qkv``: query, key and value in one layer; ``mlp_in``: a layer from the
hidden to the inner width (a gated MLP has two); ``gate_up``: both of a gated MLP in one layer."""


@dataclass(frozen=True)
class Keys:
    """The names of a model's sizes in its config.json. Where there are several names, the first one present counts."""

    hidden: tuple[str, ...] = ("hidden_size",)
    inner: tuple[str, ...] = ("intermediate_size",)
    layers: tuple[str, ...] = ("num_hidden_layers",)
    heads: tuple[str, ...] = ("num_attention_heads",)
    key_heads: tuple[str, ...] = ("num_key_value_heads",)


@dataclass(frozen=True)
class Layer:
    """One linear layer of a block."""

    path: str
    """Its module name inside the block, such as ``self_attn.q_proj``."""
    role: Role

    @property
    def name(self) -> str:
        """The last part of the path, which is the name that LoRA targets."""
        return self.path.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Linear(Layer):
    """A layer with its sizes."""

    inputs: int
    outputs: int
    bias: bool = False

    @property
    def size(self) -> int:
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class Shape:
    hidden: int
    """Width of the residual stream."""
    layers: int
    """Number of blocks."""
    vocab: int
    """Rows of the embedding."""
    heads: int
    """Query heads."""
    key_heads: int
    query: int
    """Width of all query heads together; what attention computes with."""
    key: int
    """Width of all key heads together; the values are as wide."""
    inner: int
    """Width inside the MLP."""
    linears: tuple[Linear, ...]
    """Linear layers of one block."""
    norms: int
    """Elements of one block that are not in linear layers."""
    outside: int
    """Elements outside the blocks: embeddings, positions, final norm, and the head where it is not tied."""
    tied: bool
    """The head is the embedding."""
    capped: bool = False
    """Logits are soft-capped after the head (Gemma 2)."""
    head: str = "lm_head"
    """Module name of the output layer."""
    head_bias: bool = False
    """The head has a bias (Phi)."""
    base_vocab: int | None = None
    """Rows of the base's embedding, if the model has new rows: then embedding and head are trained by every method."""

    @property
    def block(self) -> int:
        return self.norms + sum(linear.size for linear in self.linears)

    @property
    def total(self) -> int:
        """Parameters of the model; tied weights count once."""
        return self.outside + self.layers * self.block

    @property
    def tables(self) -> int:
        """Elements of the embedding and of the head; a tied one counts once."""
        return self.vocab * (self.hidden * (1 if self.tied else 2) + self.head_bias)

    @property
    def block_matrices(self) -> int:
        """Elements of the matrices of one block, without biases and norms."""
        return sum(linear.inputs * linear.outputs for linear in self.linears)

    @property
    def matrices(self) -> int:
        """Elements of the matrices of all blocks."""
        return self.layers * self.block_matrices

    def adapters(self, rank: int, targets: list[str] | None = None) -> int:
        """Parameters of LoRA adapters of ``rank`` on the linear layers named in ``targets`` (None: all of a block)."""
        chosen = [linear for linear in self.linears if targets is None or linear.name in targets]
        return self.layers * sum(rank * (linear.inputs + linear.outputs) for linear in chosen)


def linears(
    layers: tuple[Layer, ...], *, hidden: int, query: int, key: int, inner: int, biased: Collection[Role]
) -> tuple[Linear, ...]:
    """``layers`` with the sizes that follow from their roles; those of the roles in ``biased`` have a bias."""
    inputs = {"attention_out": query, "mlp_out": inner}
    outputs = {
        "query": query,
        "key": key,
        "value": key,
        "qkv": query + 2 * key,
        "attention_out": hidden,
        "mlp_in": inner,
        "gate_up": 2 * inner,
        "mlp_out": hidden,
    }
    return tuple(
        Linear(each.path, each.role, inputs.get(each.role, hidden), outputs[each.role], each.role in biased)
        for each in layers
    )


def is_tied(config: Config) -> bool:
    return bool(config.get("tie_word_embeddings", False))


def embeddings(config: Config, vocab: int, hidden: int) -> int:
    """Elements of the embedding, and of the head where that is another matrix."""
    return vocab * hidden * (1 if is_tied(config) else 2)


def size(config: Config, names: tuple[str, ...]) -> int:
    """The value of the first of ``names`` that ``config`` has. Raises KeyError."""
    for name in names:
        if config.get(name):
            return int(config[name])
    raise KeyError(names[0])
