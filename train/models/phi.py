"""Phi-1.5 and Phi-2 (Li et al. 2023): attention and MLP in parallel, rotary positions in half of each head."""

from train.models.types import Family

FAMILY = Family(
    model_type="phi",
    block_class="PhiDecoderLayer",
    lora_targets=("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
    dropouts=("attention_dropout", "resid_pdrop", "embd_pdrop"),
)
