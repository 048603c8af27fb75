"""SmolLM3 (Hugging Face 2025): Llama without rotary positions in every fourth layer."""

from functools import partial

from train.families.parts import llama_like
from train.families.parts.family import Family

BLOCK = llama_like.Block()

FAMILY = Family(
    model_type="smollm3",
    block_class="SmolLM3DecoderLayer",
    layers=llama_like.LAYERS,
    shape=partial(llama_like.shape, block=BLOCK),
    kept=partial(llama_like.kept, BLOCK),
    dropouts=("attention_dropout",),
)
