"""GPT-NeoX (Black et al. 2022), the architecture of Pythia."""

from train.models.types import Family

FAMILY = Family(
    model_type="gpt_neox",
    block_class="GPTNeoXLayer",
    lora_targets=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    dropouts=("attention_dropout", "hidden_dropout"),
)
