"""Qwen3 (dense): Llama with normalised queries and keys."""

from train.models.types import Family

FAMILY = Family(
    model_type="qwen3",
    block_class="Qwen3DecoderLayer",
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    dropouts=("attention_dropout",),
)
