"""Qwen3 (dense): Llama with normalised queries and keys."""

from functools import partial

from train.families.parts import llama_like
from train.families.parts.family import Family
from train.families.parts.shape import Config, Shape

BLOCK = llama_like.Block(normed="heads")


def shape(config: Config) -> Shape:
    return llama_like.shape(config, BLOCK, biased=llama_like.ATTENTION if config.get("attention_bias") else ())


FAMILY = Family(
    model_type="qwen3",
    block_class="Qwen3DecoderLayer",
    layers=llama_like.LAYERS,
    shape=shape,
    kept=partial(llama_like.kept, BLOCK),
    defaults={"num_key_value_heads": 32, "head_dim": 128},
    dropouts=("attention_dropout",),
)
