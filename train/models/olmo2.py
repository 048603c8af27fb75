"""OLMo 2 (OLMo Team 2025): Llama with its norms behind the layers, and normalised queries and keys."""

from train.models.types import Family

FAMILY = Family(
    model_type="olmo2",
    block_class="Olmo2DecoderLayer",
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    dropouts=("attention_dropout",),
)
