"""BLOOM (Workshop 2022): ALiBi positions, which transformers derives from the padding mask."""

from train.families.parts import layer_norm
from train.families.parts.family import Family
from train.families.parts.kept import Kept, Work
from train.families.parts.shape import Config, Keys, Shape, size

LAYERS = layer_norm.fused("self_attention")
KEYS = Keys(
    hidden=("hidden_size", "n_embed"),
    layers=("n_layer", "num_hidden_layers"),
    heads=("n_head", "num_attention_heads"),
)


def shape(config: Config) -> Shape:
    """A norm follows the embedding."""
    hidden, biased = size(config, KEYS.hidden), {layer.role for layer in LAYERS}
    return layer_norm.shape(config, LAYERS, KEYS, inner=4 * hidden, biased=biased, others=4 * hidden)


def kept(config: Config, shape: Shape, work: Work) -> Kept:
    h, s = shape.hidden, work.element
    scores = shape.heads * work.row * (6 if s == 2 else 4)  # fp32 softmax, and its bf16 copy
    return layer_norm.kept(shape, work, always=s * (2 * h + 3 * h + h + shape.inner) + scores, products=5)


FAMILY = Family(
    model_type="bloom",
    block_class="BloomBlock",
    layers=LAYERS,
    shape=shape,
    kept=kept,
    norm="layer",
    defaults={"tie_word_embeddings": True},
    keys=KEYS,
    packing=False,
    interface=False,
    reason="whose ALiBi positions come from the padding mask and which has no attention interface",
    dropouts=("attention_dropout", "hidden_dropout"),
)
