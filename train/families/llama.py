"""Llama (Touvron et al. 2023) 1, 2 and 3, and everything of its shape."""

from functools import partial

from train.families.parts import llama_like
from train.families.parts.family import Family
from train.families.parts.llama_like import ATTENTION, MLP
from train.families.parts.shape import Config, Role, Shape

BLOCK = llama_like.Block()


def shape(config: Config) -> Shape:
    attention: tuple[Role, ...] = ATTENTION if config.get("attention_bias") else ()
    mlp: tuple[Role, ...] = MLP if config.get("mlp_bias") else ()
    return llama_like.shape(config, BLOCK, biased=attention + mlp)


FAMILY = Family(
    model_type="llama",
    block_class="LlamaDecoderLayer",
    layers=llama_like.LAYERS,
    shape=shape,
    kept=partial(llama_like.kept, BLOCK),
    dropouts=("attention_dropout",),
)
