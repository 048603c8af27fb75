"""Gemma 2 (Gemma Team 2024): windows in every second layer, and attention scores capped by a tanh."""

from train.models.types import Family

FAMILY = Family(
    model_type="gemma2",
    block_class="Gemma2DecoderLayer",
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    dropouts=("attention_dropout",),
    soft_cap=True,
)
