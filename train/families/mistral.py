"""Mistral 7B (Jiang et al. 2023): Llama with, in its first version, a sliding window over the last 4,096 tokens."""

from functools import partial

from train.families.parts import llama_like
from train.families.parts.family import Family

BLOCK = llama_like.Block()

FAMILY = Family(
    model_type="mistral",
    block_class="MistralDecoderLayer",
    layers=llama_like.LAYERS,
    shape=partial(llama_like.shape, block=BLOCK),
    kept=partial(llama_like.kept, BLOCK),
    defaults={"num_key_value_heads": 8},
    dropouts=("attention_dropout",),
)
