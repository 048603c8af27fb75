"""How many elements each tuning method trains, from a model's shape alone; torch-free, for plans and FLOPs."""

from __future__ import annotations

from fnmatch import fnmatchcase

from conf.methods import BottleneckTuning, FullTuning, Ia3Tuning, LoraTuning, PrefixTuning, PromptTuning, Tuning
from train.parameters import Linear, Shape

KEYS_AND_VALUES = ("k_proj", "v_proj")
NF4_SHARE = 4.127 / 16
"""Size of a quantized matrix against 16 bits: 4, and 0.127 for its constants (Dettmers et al. 2023, section 3)."""

HEADS = ("lm_head", "embed_out")
"""What families call their output layer."""


def virtual_tokens(tuning: Tuning) -> int:
    """How many positions the method puts before every sample; such a method needs padded rows of one sample."""
    return tuning.virtual_tokens if isinstance(tuning, PromptTuning | PrefixTuning) else 0


def new_elements(tuning: Tuning, shape: Shape) -> int:
    """Elements that the method adds to a model of ``shape``; 0 in full tuning.

    A LoRA target with a pattern counts by its last part in every layer: an upper bound.
    """
    match tuning:
        case LoraTuning():
            lengths = (
                sum(linear.outputs for linear in adapted_linears(tuning, shape)) if tuning.variant == "dora" else 0
            )
            return matrix_elements(tuning, shape) + shape.layers * lengths
        case Ia3Tuning():
            scaled = [linear.outputs for linear in shape.linears if linear.name in KEYS_AND_VALUES]
            return shape.layers * (sum(scaled or [shape.linears[0].outputs]) + shape.linears[-1].inputs)
        case PromptTuning():
            return tuning.virtual_tokens * shape.hidden
        case PrefixTuning():
            return tuning.virtual_tokens * shape.layers * 2 * _key_width(shape)
        case BottleneckTuning():
            biases = shape.layers * _places(tuning) * (shape.hidden + tuning.size)
            return matrix_elements(tuning, shape) + biases
        case FullTuning():
            return 0


def matrix_elements(tuning: Tuning, shape: Shape) -> int:
    """Of ``new_elements``, those that every token is multiplied by."""
    if isinstance(tuning, LoraTuning):
        return shape.layers * sum(tuning.rank * (each.inputs + each.outputs) for each in adapted_linears(tuning, shape))
    if isinstance(tuning, BottleneckTuning):
        return shape.layers * _places(tuning) * 2 * shape.hidden * tuning.size
    return 0


def whole_elements(tuning: Tuning, shape: Shape) -> int:
    """Elements of the base that are trained: all, or those of LoRA's ``modules_to_save``.

    ``tuning.freeze`` is not subtracted, and a module that is no linear layer of a block counts as an embedding: upper
    bounds.
    """
    if isinstance(tuning, FullTuning):
        return shape.total
    patterns = tuning.modules_to_save if isinstance(tuning, LoraTuning) else []
    inside = [shape.layers * each.size for each in shape.linears if any(_fits(each, pattern) for pattern in patterns)]
    others = [pattern for pattern in patterns if not any(_fits(each, pattern) for each in shape.linears)]
    return min(shape.total, sum(inside) + len(others) * shape.vocab * shape.hidden)


def frozen_size(tuning: Tuning, shape: Shape) -> float:
    """Frozen elements, those in 4 bits counted by their size against 16."""
    frozen = float(shape.total - whole_elements(tuning, shape))
    if isinstance(tuning, LoraTuning) and tuning.quantize == "nf4":
        frozen -= (1.0 - NF4_SHARE) * shape.layers * sum(each.inputs * each.outputs for each in shape.linears)
    return frozen


def head_is_wrapped(tuning: Tuning) -> bool:
    """Whether a tuning method puts something of its own in the place of the output layer."""
    patterns = [] if not isinstance(tuning, LoraTuning) else [*tuning.modules_to_save]
    if isinstance(tuning, LoraTuning) and tuning.targets != "family":
        patterns += tuning.targets
    return any(fnmatchcase(head, pattern.rsplit(".", 1)[-1]) for head in HEADS for pattern in patterns)


def adapted_linears(tuning: LoraTuning, shape: Shape) -> list[Linear]:
    """The linear layers of a block that LoRA adapts."""
    if tuning.targets == "family":
        return list(shape.linears)
    return [each for each in shape.linears if any(_fits(each, target) for target in tuning.targets)]


def _fits(linear: Linear, pattern: str) -> bool:
    return fnmatchcase(linear.name, pattern.rsplit(".", 1)[-1])


def _key_width(shape: Shape) -> int:
    """Width of all key heads together; where queries, keys and values are one layer, from its width and the next's."""
    widths = {linear.name: linear.outputs for linear in shape.linears}
    if "k_proj" in widths:
        return widths["k_proj"]
    fused, out = shape.linears[:2]
    return (fused.outputs - out.inputs) // 2


def _places(tuning: BottleneckTuning) -> int:
    return 2 if tuning.placement == "houlsby" else 1
