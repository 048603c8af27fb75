"""Phi-3 (Abdin et al. 2024): Llama with fused projections and, in the small ones, a sliding window."""

from dataclasses import replace
from functools import partial

from train.families.parts import llama_like
from train.families.parts.family import Family
from train.families.parts.kept import Kept, Work
from train.families.parts.shape import Config, Layer, Shape

BLOCK = llama_like.Block()
LAYERS = (
    Layer("self_attn.qkv_proj", "qkv"),
    Layer("self_attn.o_proj", "attention_out"),
    Layer("mlp.gate_up_proj", "gate_up"),
    Layer("mlp.down_proj", "mlp_out"),
)


def kept(config: Config, shape: Shape, work: Work) -> Kept:
    """The values, which attention keeps, are a part of the fused projection, so all of it stays."""
    plain, s = llama_like.kept(BLOCK, config, shape, work), work.element
    # Computed again, the base's 2i, the adapter's and their sum meet while the residual is still there.
    adapted = work.adapted is not None and "gate_up_proj" in work.adapted
    return replace(
        plain,
        always=plain.always + (s * (shape.query + shape.key) if work.slices == 1 else 0),
        entry=plain.entry + (2 * s * shape.hidden if adapted else 0),
    )


FAMILY = Family(
    model_type="phi3",
    block_class="Phi3DecoderLayer",
    layers=LAYERS,
    shape=partial(llama_like.shape, block=BLOCK, layers=LAYERS),
    kept=kept,
    dropouts=("attention_dropout", "resid_pdrop", "embd_pdrop"),
)
