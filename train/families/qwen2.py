"""Qwen2 and Qwen2.5: Llama with biases on query, key and value."""

from functools import partial

from train.families.parts import llama_like
from train.families.parts.family import Family

BLOCK = llama_like.Block()

FAMILY = Family(
    model_type="qwen2",
    block_class="Qwen2DecoderLayer",
    layers=llama_like.LAYERS,
    shape=partial(llama_like.shape, block=BLOCK, biased=("query", "key", "value")),
    kept=partial(llama_like.kept, BLOCK),
    dropouts=("attention_dropout",),
)
