"""Qwen2 and Qwen2.5: Llama with biases on query, key and value."""

from train.models.types import Family

FAMILY = Family(
    model_type="qwen2",
    block_class="Qwen2DecoderLayer",
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    dropouts=("attention_dropout",),
)
