"""Gemma 2 (Gemma Team 2024): windows in every second layer, and attention scores capped by a tanh."""

from dataclasses import replace
from functools import partial

from train.families.parts import llama_like
from train.families.parts.family import Family
from train.families.parts.shape import Config, Shape

BLOCK = llama_like.Block(norms="both", norm="rms32")


def shape(config: Config) -> Shape:
    plain = llama_like.shape(config, BLOCK, biased=llama_like.ATTENTION if config.get("attention_bias") else ())
    return replace(plain, capped=bool(config["final_logit_softcapping"]))


FAMILY = Family(
    model_type="gemma2",
    block_class="Gemma2DecoderLayer",
    layers=llama_like.LAYERS,
    shape=shape,
    kept=partial(llama_like.kept, BLOCK),
    norm=BLOCK.norm,
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "tie_word_embeddings": True,
        "final_logit_softcapping": 30.0,
    },
    dropouts=("attention_dropout",),
    soft_cap=True,
)
