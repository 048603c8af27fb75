"""What one block of each family keeps for its backward pass, and what of the model's ends depends on the family.

The formulas count the tensors of transformers' modelling files (models/llama, qwen3, olmo2, gemma2, gemma3, phi, phi3,
gpt2, gpt_neox, bloom of 5.x), operator by operator, as autograd keeps them; train/trace.py runs those files on fake
tensors, and the tests hold the two together.

Symbols as in Korthikanti et al. 2022 (Reducing Activation Recomputation, section 4), where they exist: h hidden width,
i inner width of the MLP, a heads, V vocabulary, T tokens of the micro-batch, n of them with logits, s bytes per element
of the compute dtype.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from train.parameters import Shape

Norm = Literal["rms", "rms32", "layer"]
"""``rms`` scales in the compute dtype (Llama), ``rms32`` in fp32 (OLMo 2, Gemma), ``layer`` is one fused operator."""
NORMS: dict[str, Norm] = {
    "gpt2": "layer", "gpt_neox": "layer", "bloom": "layer", "phi": "layer",
    "olmo2": "rms32", "gemma2": "rms32", "gemma3_text": "rms32",
}  # fmt: skip
"""Families that are not here are ``rms``."""
RMS_MOMENT = 24
"""Per token and unit of width, in the backward of an RMSNorm written in fp32: its fp32 input and five fp32 tensors."""
TIED = ("gpt2", "bloom", "gemma2", "gemma3_text")
"""Families whose head is the embedding unless their config says otherwise."""


@dataclass(frozen=True)
class Kept:
    """What one block keeps for its backward pass, in bytes per token unless said otherwise."""

    always: float
    norm_weights: float
    """Normalised inputs, kept only where the weights of the norms are trained."""
    inputs: tuple[tuple[int, tuple[str, ...]], ...]
    """Inputs of linear layers: elements, and who reads them; kept if one of the readers is trained or adapted."""
    shared: tuple[tuple[int, tuple[str, ...]], ...]
    """The same, for inputs that something else in the block keeps anyway."""
    first: float
    """Part of ``always`` that the first block does not keep when everything before it is frozen."""
    entry: float
    """What a block costs beyond the rest when it is computed again."""
    inner: int
    """i."""
    products: int
    """Tensors of width i that the backward of the activation function adds at its worst moment."""
    ending: float = 0.0
    """What the backward of a norm at the block's end adds, while the whole block is still kept."""


@dataclass(frozen=True)
class Work:
    """What is trained and computed, as far as activations depend on it."""

    tokens: int
    logits: int
    """Tokens with logits."""
    row: int
    """Longest row: attention without a flash kernel keeps a matrix of its square."""
    element: int
    adapted: tuple[str, ...] | None = None
    """Linear layers with adapters; None: everything is trained."""
    rank: int = 0
    dropout: float = 0.0
    chunk: int = 0
    """Positions whose logits are alive at once (train/head.py); 0: all of them, and their loss apart from the head."""
    slices: int = 1
    """Ranks that share a row (compute.sequence_parallel): ``tokens`` are of one slice."""


def norm_of(model: Mapping[str, Any]) -> Norm:
    return NORMS.get(model["model_type"], "rms")


def is_tied(model: Mapping[str, Any]) -> bool:
    return bool(model.get("tie_word_embeddings", model["model_type"] in TIED))


def kept_by_block(model: Mapping[str, Any], shape: Shape, work: Work) -> Kept:
    """The ledger of one block of ``model`` (a Hugging Face config that ``shape`` was made from)."""
    match model["model_type"]:
        case "gpt2":
            kept = _gpt2(model, shape, work)
        case "gpt_neox":
            kept = _gpt_neox(model, shape, work)
        case "bloom":
            kept = _bloom(model, shape, work)
        case "phi":
            kept = _phi(model, shape, work)
        case "phi3":
            kept = _phi3(model, shape, work)
        case _:
            kept = _llama_like(model, shape, work, *(linear.outputs for linear in shape.linears[:2]))
    return kept if work.slices == 1 else replace(kept, inputs=(*kept.inputs, *kept.shared), shared=())


def query_heads(model: Mapping[str, Any]) -> int:
    return int(model.get("num_attention_heads") or model["n_head"])


def key_repeats(key_heads: int, slices: int) -> int:
    """How often each key head is sent to the ``slices`` ranks of a row: the least that gives all of them whole heads.

    The number of ranks and of key heads divide that of the query heads, and so does their least common multiple.
    """
    return math.lcm(key_heads, slices) // key_heads


def _sent(model: Mapping[str, Any], key: int, slices: int) -> int:
    """Width of the keys that attention keeps: ``key``, or more where heads are sent to several ranks."""
    return key * key_repeats(model.get("num_key_value_heads") or query_heads(model), slices)


def _llama_like(model: Mapping[str, Any], shape: Shape, work: Work, query: int, key: int) -> Kept:
    """A gated MLP, and a norm before each half of the block, behind it (OLMo 2), or both (Gemma)."""
    h, s, kind, inner = shape.hidden, work.element, model["model_type"], shape.linears[-1].inputs
    norms, scales = _rms_norms(model, h, query, key, s)
    before, behind = kind != "olmo2", kind == "olmo2" or kind.startswith("gemma")
    return Kept(
        always=norms + s * (2 * query + 2 * _sent(model, key, work.slices)) + 4 * query_heads(model) + 3 * s * inner,
        norm_weights=scales,
        inputs=((h, ("q_proj", "k_proj", "v_proj")), (h, ("gate_proj", "up_proj")), (inner, ("down_proj",))),
        shared=((query, ("o_proj",)),),
        first=4 * h if before else 0.0,
        # in 16 bits a norm keeps an fp32 copy of the block's input, which is one tensor more
        entry=s * h if before and s == 2 else 0.0,
        inner=inner,
        products=2,
        ending=(RMS_MOMENT - 4 + s) * h if behind else 0.0,
    )


def _rms_norms(model: Mapping[str, Any], hidden: int, query: int, key: int, element: int) -> tuple[float, float]:
    """What the norms of one block keep: fp32 copies of their inputs and inverse root mean squares; and, for the
    gradients of their scales, the normalised inputs."""
    kind = model["model_type"]
    width, roots = (4 if kind.startswith("gemma") else 2) * hidden, 4 if kind.startswith("gemma") else 2
    if kind == "olmo2":  # of all queries, of all keys
        width, roots = width + query + key, roots + 2
    elif kind in ("qwen3", "gemma3_text"):  # of every head's
        heads = model["num_attention_heads"]
        width, roots = width + query + key, roots + (query + key) // (query // heads)
    return 4.0 * (width + roots), width * (4.0 if norm_of(model) == "rms32" else element)


def _phi3(model: Mapping[str, Any], shape: Shape, work: Work) -> Kept:
    """Llama's block with fused projections, of which the values, kept, are a part."""
    h, s, query = shape.hidden, work.element, shape.linears[1].inputs
    key = (shape.linears[0].outputs - query) // 2
    plain = _llama_like(model, shape, work, query, key)
    # Computed again, the base's 2i, the adapter's and their sum meet while the residual is still there.
    adapted = work.adapted is not None and "gate_up_proj" in work.adapted
    return replace(
        plain,
        always=plain.always + (s * (query + key) if work.slices == 1 else 0),
        inputs=((h, ("qkv_proj",)), (h, ("gate_up_proj",)), (plain.inner, ("down_proj",))),
        entry=plain.entry + (2 * s * h if adapted else 0),
    )


def _gpt2(model: Mapping[str, Any], shape: Shape, work: Work) -> Kept:
    h, s, inner = shape.hidden, work.element, shape.linears[2].outputs
    return Kept(
        # two inputs of norms, queries, keys, values, output, log-sum-exp, and four tensors of the tanh form of GELU
        always=s * (2 * h + 3 * h + h + 4 * inner) + 4 * model["n_head"],
        norm_weights=0.0,
        inputs=((h, ("c_attn",)), (h, ("c_fc",)), (inner, ("c_proj",))),
        shared=((h, ("c_proj",)),),
        first=s * h,
        entry=0.0,
        inner=inner,
        products=2,
    )


def _phi(model: Mapping[str, Any], shape: Shape, work: Work) -> Kept:
    """One norm, whose output attention and the MLP both read; GPT-2's form of GELU."""
    h, s, heads = shape.hidden, work.element, model["num_attention_heads"]
    query, key, inner = shape.linears[0].outputs, shape.linears[1].outputs, shape.linears[-1].inputs
    heads_normed = s * (query + key) if model.get("qk_layernorm") else 0
    return Kept(
        always=s * (h + 2 * query + 2 * _sent(model, key, work.slices) + 4 * inner) + 4 * heads + heads_normed,
        norm_weights=0.0,
        inputs=((h, ("q_proj", "k_proj", "v_proj", "fc1")), (inner, ("fc2",))),
        shared=((query, ("dense",)),),
        first=s * h,
        entry=0.0,
        inner=inner,
        products=2,
    )


def _gpt_neox(model: Mapping[str, Any], shape: Shape, work: Work) -> Kept:
    h, s, inner = shape.hidden, work.element, model["intermediate_size"]
    norms = 1 if model.get("use_parallel_residual", True) else 2  # both norms read the same tensor
    # the fused projection stays alive through its values, unless they are exchanged; rotated queries and keys are new
    projection = 3 * h if work.slices == 1 else h
    return Kept(
        always=s * (norms * h + projection + 2 * h + h + inner) + 4 * model["num_attention_heads"],
        norm_weights=0.0,
        inputs=((h, ("query_key_value",)), (h, ("dense_h_to_4h",)), (inner, ("dense_4h_to_h",))),
        shared=((h, ("dense",)),),
        first=s * h,
        entry=0.0,
        inner=inner,
        products=1 if work.adapted is None else 2,
    )


def _bloom(model: Mapping[str, Any], shape: Shape, work: Work) -> Kept:
    h, s, inner, heads = shape.hidden, work.element, 4 * shape.hidden, model["n_head"]
    scores = heads * work.row * (6 if s == 2 else 4)  # fp32 softmax, and its bf16 copy
    return Kept(
        always=s * (2 * h + 3 * h + h + inner) + scores,
        norm_weights=0.0,
        inputs=((h, ("query_key_value",)), (h, ("dense_h_to_4h",)), (inner, ("dense_4h_to_h",))),
        shared=((h, ("dense",)),),
        first=s * h,
        entry=0.0,
        inner=inner,
        products=5,
    )


def block_bytes(kept: Kept, work: Work) -> float:
    """Bytes per token that one block keeps. Adapters keep their inner product; dropout a mask and its own output."""
    if work.adapted is None:
        return kept.always + kept.norm_weights + work.element * sum(elements for elements, _ in kept.inputs)
    total = kept.always
    for elements, readers in (*kept.inputs, *kept.shared):
        adapted = [name for name in readers if name in work.adapted]
        own = (elements, readers) in kept.inputs
        if work.dropout:
            total += len(adapted) * elements * (1 + work.element)
        elif adapted and own:
            total += elements * work.element
        total += len(adapted) * work.rank * work.element
    return total


def rotary_bytes(model: Mapping[str, Any], shape: Shape, element: int) -> float:
    """Bytes per token of the cosines and sines that all blocks share: fp32 in OLMo 2, two pairs in Gemma 3."""
    kind = model["model_type"]
    if kind in ("gpt2", "bloom"):
        return 0.0
    query = next((linear.outputs for linear in shape.linears if linear.name == "q_proj"), shape.hidden)
    size, pairs = 4 if kind == "olmo2" else element, 2 if kind == "gemma3_text" else 1
    return float(pairs * 2 * size * query // model["num_attention_heads"] * _rotated_share(model))


def _rotated_share(model: Mapping[str, Any]) -> float:
    """Share of a head's width that is rotated."""
    match model["model_type"]:
        case "gpt_neox":
            return float(model.get("rotary_pct", 0.25))
        case "phi":
            return float(model.get("partial_rotary_factor", 0.5))
        case _:
            return 1.0
