"""Llama (Touvron et al. 2023) 1, 2 and 3, and everything of its shape."""

from train.models.types import Family

FAMILY = Family(
    model_type="llama",
    block_class="LlamaDecoderLayer",
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    dropouts=("attention_dropout",),
)
