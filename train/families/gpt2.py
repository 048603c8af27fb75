"""GPT-2 (Radford et al. 2019): learned positions, and linear layers that store their weight transposed."""

from train.families.parts import layer_norm
from train.families.parts.family import Family
from train.families.parts.kept import Kept, Work
from train.families.parts.shape import Config, Keys, Layer, Shape, size

LAYERS = (
    Layer("attn.c_attn", "qkv"),
    Layer("attn.c_proj", "attention_out"),
    Layer("mlp.c_fc", "mlp_in"),
    Layer("mlp.c_proj", "mlp_out"),
)
KEYS = Keys(
    hidden=("n_embd", "hidden_size"),
    inner=("n_inner",),
    layers=("n_layer", "num_hidden_layers"),
    heads=("n_head", "num_attention_heads"),
)


def shape(config: Config) -> Shape:
    hidden, biased = size(config, KEYS.hidden), {layer.role for layer in LAYERS}
    inner, positions = config.get("n_inner") or 4 * hidden, config["n_positions"] * hidden
    return layer_norm.shape(config, LAYERS, KEYS, inner=inner, biased=biased, others=positions + 2 * hidden)


def kept(config: Config, shape: Shape, work: Work) -> Kept:
    h, s, inner = shape.hidden, work.element, shape.inner
    # two inputs of norms, queries, keys, values, output, log-sum-exp, and four tensors of the tanh form of GELU
    return layer_norm.kept(shape, work, always=s * (2 * h + 3 * h + h + 4 * inner) + 4 * shape.heads, products=2)


FAMILY = Family(
    model_type="gpt2",
    block_class="GPT2Block",
    layers=LAYERS,
    shape=shape,
    kept=kept,
    norm="layer",
    defaults={"tie_word_embeddings": True, "n_positions": 1024},
    keys=KEYS,
    dropouts=("attn_pdrop", "resid_pdrop", "embd_pdrop"),
    position_limit="n_positions",
    fan_in_fan_out=True,
)
