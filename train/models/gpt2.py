"""GPT-2 (Radford et al. 2019): learned positions, and linear layers that store their weight transposed."""

from train.models.types import Family

FAMILY = Family(
    model_type="gpt2",
    block_class="GPT2Block",
    lora_targets=("c_attn", "c_proj", "c_fc"),
    dropouts=("attn_pdrop", "resid_pdrop", "embd_pdrop"),
    position_limit="n_positions",
    fan_in_fan_out=True,
)
