"""BLOOM (Workshop 2022): ALiBi positions, which transformers derives from the padding mask."""

from train.models.types import Family

FAMILY = Family(
    model_type="bloom",
    block_class="BloomBlock",
    lora_targets=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    packing=False,
    interface=False,
    reason="whose ALiBi positions come from the padding mask and which has no attention interface",
    dropouts=("attention_dropout", "hidden_dropout"),
)
