"""OLMo 2 (OLMo Team 2025): Llama with its norms behind the layers, and normalised queries and keys."""

from dataclasses import replace

from train.families.parts import llama_like
from train.families.parts.family import Family
from train.families.parts.kept import Kept, Work, rotary
from train.families.parts.shape import Config, Shape

BLOCK = llama_like.Block(norms="behind", norm="rms32", normed="all")


def shape(config: Config) -> Shape:
    return llama_like.shape(config, BLOCK, biased=llama_like.ATTENTION if config.get("attention_bias") else ())


def kept(config: Config, shape: Shape, work: Work) -> Kept:
    """Cosines and sines stay in fp32."""
    return replace(llama_like.kept(BLOCK, config, shape, work), rotary=rotary(shape, 4))


FAMILY = Family(
    model_type="olmo2",
    block_class="Olmo2DecoderLayer",
    layers=llama_like.LAYERS,
    shape=shape,
    kept=kept,
    norm=BLOCK.norm,
    dropouts=("attention_dropout",),
)
