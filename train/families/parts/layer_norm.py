"""Blocks with LayerNorm and an MLP of two layers: GPT-2, GPT-NeoX, BLOOM, Phi."""

from __future__ import annotations

from collections.abc import Collection

from train.families.parts.kept import ATTENTION_IN, MLP_IN, Kept, Work, read_by
from train.families.parts.shape import Config, Keys, Layer, Role, Shape, embeddings, is_tied, linears, size


def fused(attention: str) -> tuple[Layer, ...]:
    """The layers of GPT-NeoX and BLOOM, whose attention has the module name ``attention``."""
    return (
        Layer(f"{attention}.query_key_value", "qkv"),
        Layer(f"{attention}.dense", "attention_out"),
        Layer("mlp.dense_h_to_4h", "mlp_in"),
        Layer("mlp.dense_4h_to_h", "mlp_out"),
    )


def shape(
    config: Config, layers: tuple[Layer, ...], keys: Keys, *, inner: int, biased: Collection[Role], others: int
) -> Shape:
    """The sizes of a model with two norms in a block and as many key heads as query heads. Raises KeyError.

    ``biased``: roles with a bias; ``others``: elements outside the blocks beside embedding and head.
    """
    hidden, heads, vocab = size(config, keys.hidden), size(config, keys.heads), config["vocab_size"]
    return Shape(
        hidden=hidden,
        layers=size(config, keys.layers),
        vocab=vocab,
        heads=heads,
        key_heads=heads,
        query=hidden,
        key=hidden,
        inner=inner,
        linears=linears(layers, hidden=hidden, query=hidden, key=hidden, inner=inner, biased=biased),
        norms=4 * hidden,
        outside=embeddings(config, vocab, hidden) + others,
        tied=is_tied(config),
    )


def kept(shape: Shape, work: Work, *, always: float, products: int, rotary: float = 0.0, norms: int = 2) -> Kept:
    """What such a block keeps; ``norms`` = 1: attention and MLP read the output of one norm.

    A fused LayerNorm keeps its input alone, which the family counts in ``always``.
    """
    h = shape.hidden
    halves = ((*ATTENTION_IN, *MLP_IN),) if norms == 1 else (ATTENTION_IN, MLP_IN)
    return Kept(
        always=always,
        norm_weights=0.0,
        inputs=(*(read_by(shape, h, *roles) for roles in halves), read_by(shape, shape.inner, "mlp_out")),
        shared=(read_by(shape, shape.query, "attention_out"),),
        first=work.element * h,
        entry=0.0,
        inner=shape.inner,
        products=products,
        rotary=rotary,
    )
