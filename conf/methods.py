"""The settings of every tuning method: one dataclass each, told apart by ``method``.

A list of names holds patterns: a pattern stands for a module or parameter by its dotted name or the last parts of it
(``lm_head``, ``mlp.down_proj``), and ``*``, ``?`` and ``[0-3]`` stand for anything, any character, one of these.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.fields import STRICT, Fraction, Positive, PositiveFloat


@dataclass(frozen=True, config=STRICT)
class FullTuning:
    """Every parameter is trained, but for those that ``freeze`` names."""

    method: Literal["full"]
    freeze: list[str] = Field(default_factory=list)
    """Patterns of parameters, or of modules with all that is in them, that stay as they are; checkpoints hold the
    others alone. A tied weight is frozen by either of its names."""


@dataclass(frozen=True, config=STRICT)
class LoraTuning:
    """Low-rank adapters (Hu et al. 2021); the base is frozen and not stored in checkpoints."""

    method: Literal["lora"]
    rank: Positive = 16
    alpha: PositiveFloat = 32.0
    dropout: Fraction = 0.0
    targets: list[str] | Literal["family"] = "family"
    """Patterns of linear layers to adapt. family: all linear layers of a block (train/models/ knows them)."""
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


@dataclass(frozen=True, config=STRICT)
class Ia3Tuning:
    """(IA)^3 (Liu et al. 2022): keys, values and the inner activations of the MLP are scaled by learnt vectors."""

    method: Literal["ia3"]


@dataclass(frozen=True, config=STRICT)
class PromptTuning:
    """Prompt tuning (Lester et al. 2021): learnt embeddings stand before every sample. Needs data.pack=none."""

    method: Literal["prompt"]
    virtual_tokens: Positive = 20
    """They count towards the positions a model can represent, beside data.seq_len."""


@dataclass(frozen=True, config=STRICT)
class PrefixTuning:
    """Prefix tuning (Li and Liang 2021): learnt keys and values stand before every sample in every layer.

    Needs data.pack=none and model.recompute=none.
    """

    method: Literal["prefix"]
    virtual_tokens: Positive = 20
    """They count towards the positions a model can represent, beside data.seq_len."""


@dataclass(frozen=True, config=STRICT)
class BottleneckTuning:
    """Adapters of two layers with a narrow middle (Houlsby et al. 2019), on what a sublayer adds to the stream."""

    method: Literal["bottleneck"]
    size: Positive = 64
    """Width of the middle."""
    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    """houlsby: after attention and after the MLP; pfeiffer: after the MLP alone (Pfeiffer et al. 2021)."""


Tuning = FullTuning | LoraTuning | Ia3Tuning | PromptTuning | PrefixTuning | BottleneckTuning
