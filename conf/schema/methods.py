"""The settings and facts of every tuning method: one dataclass each, told apart by ``method``.

Beside its settings, each has ``FACTS`` and ``trained(shape)``; conf/schema/facts.py says what they mean.

A list of names holds patterns: a pattern stands for a module or parameter by its dotted name or the last parts of it
(``lm_head``, ``mlp.down_proj``), and ``*``, ``?`` and ``[0-3]`` stand for anything, any character, one of these.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.schema.facts import LinearSize, MethodFacts, ModelShape, Trained
from conf.schema.fields import STRICT, Fraction, PositiveFloat, Width


@dataclass(frozen=True, config=STRICT)
class FullTuning:
    """Every parameter is trained, but for those that ``freeze`` names."""

    method: Literal["full"]
    freeze: list[str] = Field(default_factory=list)
    """Patterns of parameters, or of modules with all that is in them, that stay as they are; checkpoints hold the
    others alone. A tied weight is frozen by either of its names."""
    FACTS: ClassVar[MethodFacts] = MethodFacts(lr=2e-5)  # Stanford Alpaca's, for 7 B parameters

    def trained(self, shape: ModelShape) -> Trained:
        """``freeze`` is not subtracted: an upper bound."""
        return Trained(whole=shape.total, gradients="some" if self.freeze else "every matrix", adapted=None)


@dataclass(frozen=True, config=STRICT)
class LoraTuning:
    """Low-rank adapters (Hu et al. 2021); the base is frozen and not stored in checkpoints."""

    method: Literal["lora"]
    rank: Width = 16
    alpha: PositiveFloat = 32.0
    dropout: Fraction = 0.0
    targets: list[str] | Literal["family"] = "family"
    """Patterns of linear layers to adapt. family: all linear layers of a block (train/families/ knows them)."""
    scaling: Literal["rank", "sqrt_rank"] = "rank"
    """The update is scaled by alpha / rank, or by alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023), which keeps its
    size as the rank grows."""
    variant: Literal["plain", "dora"] = "plain"
    """dora trains the length of every row of W + B A apart from its direction (Liu et al. 2024); slower."""
    modules_to_save: list[str] = Field(default_factory=list)
    """Patterns of modules that are trained whole beside the adapters, such as embed_tokens and lm_head."""
    quantize: Literal["none", "nf4"] = "none"
    """nf4: the frozen base in 4 bits, quantization constants quantized too (QLoRA, Dettmers et al. 2023); needs an
    NVIDIA GPU, bitsandbytes, and zero=2 or lower."""
    FACTS: ClassVar[MethodFacts] = MethodFacts(lr=2e-4)  # QLoRA's, section 5: ten times that of full tuning

    def trained(self, shape: ModelShape) -> Trained:
        """Upper bounds: a target with a pattern counts by its last part in every layer, and a module of
        ``modules_to_save`` that is no linear layer of a block counts as an embedding."""
        every = shape.linears
        targets = every if self.targets == "family" else [each for each in every if _fits_any(each.name, self.targets)]
        matrices = shape.layers * self.rank * sum(each.inputs + each.outputs for each in targets)
        lengths = shape.layers * sum(each.outputs for each in targets) if self.variant == "dora" else 0
        inside = shape.layers * sum(each.size for each in every if _fits_any(each.name, self.modules_to_save))
        others = [each for each in self.modules_to_save if not any(_fits_any(one.name, [each]) for one in every)]
        named = [*self.modules_to_save, *([] if self.targets == "family" else self.targets)]
        return Trained(
            new=matrices + lengths,
            matrices=matrices,
            whole=min(shape.total, inside + len(others) * shape.vocab * shape.hidden),
            matrices_of_blocks="4 bits" if self.quantize == "nf4" else "compute dtype",
            adapted=tuple(each.name for each in targets),
            rank=self.rank,
            dropout=self.dropout,
            head="wrapped" if _fits_any(shape.head, named) else "plain",
        )


@dataclass(frozen=True, config=STRICT)
class Ia3Tuning:
    """(IA)^3 (Liu et al. 2022): keys, values and the inner activations of the MLP are scaled by learnt vectors."""

    method: Literal["ia3"]
    FACTS: ClassVar[MethodFacts] = MethodFacts(
        lr=3e-3,  # the paper's, section 3.3
        no_weight_decay="pull the factors of tuning=ia3 to 0, where 1 is no change",
    )

    def trained(self, shape: ModelShape) -> Trained:
        keys = _of_role(shape, "key", "value") or _of_role(shape, "qkv")
        outputs, inputs = sum(each.outputs for each in keys), sum(each.inputs for each in _of_role(shape, "mlp_out"))
        return Trained(new=shape.layers * (outputs + inputs))


@dataclass(frozen=True, config=STRICT)
class PromptTuning:
    """Prompt tuning (Lester et al. 2021): learnt embeddings stand before every sample. Needs data.pack=none."""

    method: Literal["prompt"]
    virtual_tokens: Width = 20
    """They count towards the positions a model can represent, beside data.seq_len."""
    FACTS: ClassVar[MethodFacts] = MethodFacts(
        lr=3e-2, rows="padded"
    )  # PEFT's examples; the paper's 0.3 is for Adafactor

    def trained(self, shape: ModelShape) -> Trained:
        return Trained(new=self.virtual_tokens * shape.hidden)


@dataclass(frozen=True, config=STRICT)
class PrefixTuning:
    """Prefix tuning (Li and Liang 2021): learnt keys and values stand before every sample in every layer.

    Needs data.pack=none and model.recompute=none.
    """

    method: Literal["prefix"]
    virtual_tokens: Width = 20
    """They count towards the positions a model can represent, beside data.seq_len."""
    FACTS: ClassVar[MethodFacts] = MethodFacts(
        lr=1e-2,  # PEFT's examples
        rows="padded",
        window="holds the sample",
        no_recompute="compute blocks again without the prefix, which transformers drops there",
    )

    def trained(self, shape: ModelShape) -> Trained:
        return Trained(new=self.virtual_tokens * shape.layers * 2 * shape.key)


@dataclass(frozen=True, config=STRICT)
class BottleneckTuning:
    """Adapters of two layers with a narrow middle (Houlsby et al. 2019), on what a sublayer adds to the stream."""

    method: Literal["bottleneck"]
    size: Width = 64
    """Width of the middle."""
    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    """houlsby: after attention and after the MLP; pfeiffer: after the MLP alone (Pfeiffer et al. 2021)."""
    FACTS: ClassVar[MethodFacts] = MethodFacts(lr=1e-4, folder="corral")  # AdapterHub's advice

    def trained(self, shape: ModelShape) -> Trained:
        adapters = shape.layers * (2 if self.placement == "houlsby" else 1)
        matrices = adapters * 2 * shape.hidden * self.size
        return Trained(new=matrices + adapters * (shape.hidden + self.size), matrices=matrices)


Tuning = FullTuning | LoraTuning | Ia3Tuning | PromptTuning | PrefixTuning | BottleneckTuning


def virtual_tokens(tuning: Tuning) -> int:
    """Positions that a method puts before every sample: its setting of this name; 0 for a method without it."""
    return int(getattr(tuning, "virtual_tokens", 0))


def _of_role(shape: ModelShape, *roles: str) -> list[LinearSize]:
    return [each for each in shape.linears if each.role in roles]


def _fits_any(name: str, patterns: list[str]) -> bool:
    """Whether the last part of a pattern fits ``name``."""
    return any(fnmatchcase(name, pattern.rsplit(".", 1)[-1]) for pattern in patterns)
