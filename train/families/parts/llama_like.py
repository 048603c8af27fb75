"""The block of Llama and its relatives: RMSNorm, rotary positions, grouped-query attention, a gated MLP."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from train.families.parts.kept import ATTENTION_IN, MLP_IN, RMS_MOMENT, Kept, Norm, Work, read_by, rotary, sent
from train.families.parts.shape import Config, Layer, Role, Shape, embeddings, is_tied, linears

LAYERS = (
    Layer("self_attn.q_proj", "query"),
    Layer("self_attn.k_proj", "key"),
    Layer("self_attn.v_proj", "value"),
    Layer("self_attn.o_proj", "attention_out"),
    Layer("mlp.gate_proj", "mlp_in"),
    Layer("mlp.up_proj", "mlp_in"),
    Layer("mlp.down_proj", "mlp_out"),
)
ATTENTION: tuple[Role, ...] = ("query", "key", "value", "attention_out")
MLP: tuple[Role, ...] = ("mlp_in", "mlp_out")


@dataclass(frozen=True)
class Block:
    """In what such a block differs from Llama's."""

    norms: Literal["before", "behind", "both"] = "before"
    """Where the norms of attention and of the MLP stand."""
    norm: Norm = "rms"
    normed: Literal["nothing", "heads", "all"] = "nothing"
    """What is normalised of queries and keys: every head by itself, or all heads together."""


def shape(config: Config, block: Block, *, layers: tuple[Layer, ...] = LAYERS, biased: Collection[Role] = ()) -> Shape:
    """The sizes of a model of such blocks. Raises KeyError."""
    hidden, heads, vocab = config["hidden_size"], config["num_attention_heads"], config["vocab_size"]
    width, key_heads = config.get("head_dim") or hidden // heads, config.get("num_key_value_heads") or heads
    query, key, inner = heads * width, key_heads * width, config["intermediate_size"]
    of_heads = {"nothing": 0, "heads": 2 * width, "all": query + key}[block.normed]
    return Shape(
        hidden=hidden,
        layers=config["num_hidden_layers"],
        vocab=vocab,
        heads=heads,
        key_heads=key_heads,
        query=query,
        key=key,
        inner=inner,
        linears=linears(layers, hidden=hidden, query=query, key=key, inner=inner, biased=biased),
        norms=_norms(block) * hidden + of_heads,
        outside=embeddings(config, vocab, hidden) + hidden,
        tied=is_tied(config),
    )


def kept(block: Block, config: Config, shape: Shape, work: Work) -> Kept:
    """What such a block keeps: a norm before each half of it, behind it (OLMo 2), or both (Gemma)."""
    h, s, query, inner = shape.hidden, work.element, shape.query, shape.inner
    norms, scales = _kept_by_norms(block, shape, s)
    before, behind = block.norms != "behind", block.norms != "before"
    return Kept(
        always=norms + s * (2 * query + 2 * sent(shape, work.slices)) + 4 * shape.heads + 3 * s * inner,
        norm_weights=scales,
        inputs=(read_by(shape, h, *ATTENTION_IN), read_by(shape, h, *MLP_IN), read_by(shape, inner, "mlp_out")),
        shared=(read_by(shape, query, "attention_out"),),
        first=4 * h if before else 0.0,
        # in 16 bits a norm keeps an fp32 copy of the block's input, which is one tensor more
        entry=s * h if before and s == 2 else 0.0,
        inner=inner,
        products=2,
        ending=(RMS_MOMENT - 4 + s) * h if behind else 0.0,
        rotary=rotary(shape, s),
    )


def _norms(block: Block) -> int:
    return 4 if block.norms == "both" else 2


def _kept_by_norms(block: Block, shape: Shape, element: int) -> tuple[float, float]:
    """What the norms of one block keep: fp32 copies of their inputs and inverse root mean squares; and, for the
    gradients of their scales, the normalised inputs."""
    width, roots, both = _norms(block) * shape.hidden, _norms(block), shape.query + shape.key
    match block.normed:
        case "all":
            width, roots = width + both, roots + 2
        case "heads":
            width, roots = width + both, roots + both // (shape.query // shape.heads)
        case "nothing":
            pass
    return 4.0 * (width + roots), width * (4.0 if block.norm == "rms32" else element)
