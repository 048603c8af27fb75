"""GPT-NeoX (Black et al. 2022), the architecture of Pythia."""

from train.families.parts import layer_norm
from train.families.parts.family import Family
from train.families.parts.kept import Kept, Work, rotary
from train.families.parts.shape import Config, Keys, Role, Shape

LAYERS = layer_norm.fused("attention")


def shape(config: Config) -> Shape:
    attention: tuple[Role, ...] = ("qkv", "attention_out") if config["attention_bias"] else ()
    biased, others = (*attention, "mlp_in", "mlp_out"), 2 * config["hidden_size"]
    return layer_norm.shape(config, LAYERS, Keys(), inner=config["intermediate_size"], biased=biased, others=others)


def kept(config: Config, shape: Shape, work: Work) -> Kept:
    h, s = shape.hidden, work.element
    norms = 1 if config["use_parallel_residual"] else 2  # both norms read the same tensor
    # the fused projection stays alive through its values, unless they are exchanged; rotated queries and keys are new
    projection = 3 * h if work.slices == 1 else h
    return layer_norm.kept(
        shape,
        work,
        always=s * (norms * h + projection + 2 * h + h + shape.inner) + 4 * shape.heads,
        products=1 if work.adapted is None else 2,
        rotary=rotary(shape, s, share=float(config["rotary_pct"])),
    )


FAMILY = Family(
    model_type="gpt_neox",
    block_class="GPTNeoXLayer",
    layers=LAYERS,
    shape=shape,
    kept=kept,
    norm="layer",
    defaults={"attention_bias": True, "use_parallel_residual": True, "rotary_pct": 0.25},
    dropouts=("attention_dropout", "hidden_dropout"),
)
