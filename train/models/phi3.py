"""Phi-3 (Abdin et al. 2024): Llama with fused projections and, in the small ones, a sliding window."""

from train.models.types import Family

FAMILY = Family(
    model_type="phi3",
    block_class="Phi3DecoderLayer",
    lora_targets=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    dropouts=("attention_dropout", "resid_pdrop", "embd_pdrop"),
)
