"""Gemma 3 (Gemma Team 2025), text only: five layers with a window to one without, normalised queries and keys."""

from train.models.types import Family

FAMILY = Family(
    model_type="gemma3_text",
    block_class="Gemma3DecoderLayer",
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    dropouts=("attention_dropout",),
)
