"""Gemma 3 (Gemma Team 2025), text only: five layers with a window to one without, normalised queries and keys."""

from dataclasses import replace

from train.families.parts import llama_like
from train.families.parts.family import Family
from train.families.parts.kept import Kept, Work, rotary
from train.families.parts.shape import Config, Shape

BLOCK = llama_like.Block(norms="both", norm="rms32", normed="heads")


def shape(config: Config) -> Shape:
    return llama_like.shape(config, BLOCK, biased=llama_like.ATTENTION if config.get("attention_bias") else ())


def kept(config: Config, shape: Shape, work: Work) -> Kept:
    """Layers with a window rotate by other frequencies than layers without one."""
    return replace(llama_like.kept(BLOCK, config, shape, work), rotary=rotary(shape, work.element, pairs=2))


FAMILY = Family(
    model_type="gemma3_text",
    block_class="Gemma3DecoderLayer",
    layers=llama_like.LAYERS,
    shape=shape,
    kept=kept,
    norm=BLOCK.norm,
    defaults={"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True},
    dropouts=("attention_dropout",),
)
