"""Mistral 7B (Jiang et al. 2023): Llama with, in its first version, a sliding window over the last 4,096 tokens."""

from train.models.types import Family

FAMILY = Family(
    model_type="mistral",
    block_class="MistralDecoderLayer",
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    dropouts=("attention_dropout",),
)
