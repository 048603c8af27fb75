"""Activation memory of one micro-batch in closed form: what each block keeps, and the moments that can be the peak.

With a row sliced over ranks, attention keeps what came from them, which is as much as of whole heads over a slice; what
it gives back comes as a second tensor, the next layer's own input.

The formulas count the tensors of transformers' modelling files (models/llama, qwen3, gpt2, gpt_neox, bloom of 5.x),
operator by operator, as autograd keeps them; train/trace.py runs those files on fake tensors, and the tests hold the
two together. The workspace of flash attention's backward (an fp32 accumulator of the queries' gradient, keys and
values expanded to all heads: csrc/flash_attn/flash_api.cpp, mha_varlen_bwd) is at most 8 bytes per token and unit of
query width; it comes when the block's MLP, 8i bytes per token, is gone already, so that it is never the peak.

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

Recompute = Literal["none", "selective", "full"]

ELEMENT = {"bf16": 2, "fp32": 4}
LOSS_BYTES = 12
"""Per logit, in the backward of the loss: fp32 log-softmax, its incoming and its outgoing gradient
(aten._log_softmax_backward_data); the forward pass needs 10 (bf16 logits, fp32 copy, log-softmax)."""
RMS_MOMENT = 24
"""Per token and unit of width, in the backward of an RMSNorm written in fp32: its fp32 input and five fp32 tensors."""
INTEGERS = 40
"""Per token: ids, positions, labels, shifted labels and one index, int64."""


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
    inner: int
    """i."""
    products: int
    """Tensors of width i that the backward of the activation function adds at its worst moment."""


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


def kept_by_block(model: Mapping[str, Any], shape: Shape, work: Work) -> Kept:
    """The ledger of one block of ``model`` (a Hugging Face config that ``shape`` was made from)."""
    match model["model_type"]:
        case "gpt2":
            kept = _gpt2(model, shape, work)
        case "gpt_neox":
            kept = _gpt_neox(model, shape, work)
        case "bloom":
            kept = _bloom(model, shape, work)
        case _:
            kept = _llama_like(model, shape, work)
    return kept if work.slices == 1 else replace(kept, inputs=(*kept.inputs, *kept.shared), shared=())


def query_heads(model: Mapping[str, Any]) -> int:
    return int(model.get("num_attention_heads") or model["n_head"])


def key_repeats(key_heads: int, slices: int) -> int:
    """How often each key head is sent to the ``slices`` ranks of a row: the least that gives all of them whole heads.

    The number of ranks and of key heads divide that of the query heads, and so does their least common multiple.
    """
    return math.lcm(key_heads, slices) // key_heads


def _llama_like(model: Mapping[str, Any], shape: Shape, work: Work) -> Kept:
    h, s, heads = shape.hidden, work.element, model["num_attention_heads"]
    width = {linear.name: linear.outputs for linear in shape.linears}
    query, key, inner = width["q_proj"], width["k_proj"], width["gate_proj"]
    norms, normalised = 2 * (4 * h + 4), 2 * s * h  # an fp32 copy of the input and the inverse root mean square
    if model["model_type"] == "qwen3":  # norms of every query and key head
        norms += 4 * (query + key) + 4 * (query + key) // (query // heads)
        normalised += s * (query + key)
    sent = key * key_repeats(model.get("num_key_value_heads") or heads, work.slices)
    attention = s * (2 * query + 2 * sent) + 4 * heads
    return Kept(
        always=norms + attention + 3 * s * inner,
        norm_weights=normalised,
        inputs=((h, ("q_proj", "k_proj", "v_proj")), (h, ("gate_proj", "up_proj")), (inner, ("down_proj",))),
        shared=((query, ("o_proj",)),),
        first=4 * h,
        inner=inner,
        products=2,
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


@dataclass(frozen=True)
class Moment:
    """Bytes alive at one moment that can be the peak of a micro-batch; weights and held gradients not counted."""

    activations: float
    """What blocks, norm and batch keep."""
    logits: float
    """Logits and everything made of them."""
    passing: float
    """Gradients on their way: of activations, and of the one weight whose turn it is."""

    @property
    def total(self) -> float:
        return self.activations + self.logits + self.passing


def step_peaks(model: Mapping[str, Any], shape: Shape, work: Work, recompute: Recompute) -> dict[str, Moment]:
    """The moments that can be the peak.

    ``loss``: the head in chunks, or the backward of the cross-entropy. ``head``: gradient of the head's weight.
    ``norm``: backward of the last norm. ``deepest``: backward of the last blocks. ``embedding``: gradient of the
    embedding.
    """
    kept = kept_by_block(model, shape, work)
    s, tokens, h, full = work.element, work.tokens, shape.hidden, work.adapted is None
    rms = kept.norm_weights > 0  # true of the RMSNorm families only
    around = tokens * (INTEGERS + _rotary(model, shape, s))
    blocks = around + _kept_before(shape.layers, kept, work, h, recompute)
    table = float(s * shape.vocab * h) if full else 0.0
    tied = bool(model.get("tie_word_embeddings", model["model_type"] in ("gpt2", "bloom")))
    held = table if tied else 0.0  # the head's gradient waits for the embedding's
    after = float(tokens * ((4 * h + (s * h if full else 0)) if rms else s * h))
    before, passing = _deepest(shape, kept, work, recompute)
    return _head_moments(shape, work, blocks + after, table) | {
        "norm": Moment(blocks, 0.0, held + tokens * h * (RMS_MOMENT if rms else 4 * s)),
        "deepest": Moment(around + before, 0.0, held + passing),
        "embedding": Moment(around, 0.0, 3 * table if tied else table),
    }


def _head_moments(shape: Shape, work: Work, kept: float, table: float) -> dict[str, Moment]:
    """Loss and head, over ``kept``; ``table``: bytes of the head's gradient in the compute dtype, 0 if it has none."""
    s, h, selected = work.element, shape.hidden, float(work.element * work.logits * shape.hidden)
    if not work.chunk:
        kept += selected if table else 0.0
        whole = float(work.logits * shape.vocab)
        return {"loss": Moment(kept, LOSS_BYTES * whole, 0.0), "head": Moment(kept, s * whole, selected + table)}
    chunks = -(-work.logits // work.chunk)
    gradient = float(s * work.chunk * shape.vocab)
    logits = 2 * gradient  # of the chunk, and the gradient that is made of them
    exact = 2.0 * table if s == 2 and chunks > 1 else table  # the sum over chunks is in fp32
    products = {1: [(gradient, table)], 2: [(gradient, table), (logits, table), (gradient, 2 * table + exact)]}
    if s == 4 or not table:
        products[2] = [(logits, table)]
    candidates = [(logits, 0.0), *products[min(chunks, 2)], *([(logits, exact)] if chunks > 2 else [])]
    alive, summed = max(candidates, key=sum)
    # In the forward pass the last block's output, normalised, is still there beside the positions taken from it.
    frame = float(s * work.tokens * h) + 2 * selected
    return {
        "loss": Moment(kept + frame, alive, summed),
        "head": Moment(kept, 0.0, selected + exact + (table if exact > table else 0.0)),
    }


def _recomputed(index: int, recompute: Recompute) -> bool:
    return recompute == "full" or (recompute == "selective" and index % 2 == 0)


def _kept_before(count: int, kept: Kept, work: Work, hidden: int, recompute: Recompute) -> float:
    """Bytes that the first ``count`` blocks keep after the forward pass."""
    whole, again = work.tokens * block_bytes(kept, work), work.tokens * work.element * hidden
    total = sum(again if _recomputed(index, recompute) else whole for index in range(count))
    frozen_start = work.adapted is not None and count > 0 and not _recomputed(0, recompute)
    return total - (work.tokens * kept.first if frozen_start else 0.0)


def _deepest(shape: Shape, kept: Kept, work: Work, recompute: Recompute) -> tuple[float, float]:
    """What is kept and what is passing at the worst moment in the backward of the last two blocks."""
    s, h, tokens = work.element, shape.hidden, work.tokens
    activation = tokens * s * (h + kept.products * kept.inner)
    projection = tokens * s * (h + kept.inner) + (s * h * kept.inner if work.adapted is None else 0)
    # A block computed again has kept its input, unless its first norm keeps that very tensor: in 16 bits an RMSNorm
    # keeps an fp32 copy instead.
    extra = s * h if kept.norm_weights and s == 2 else 0
    candidates = []
    for index in range(max(0, shape.layers - 2), shape.layers):
        own = block_bytes(kept, work) + (extra if _recomputed(index, recompute) else 0)
        candidates.append(_kept_before(index, kept, work, h, recompute) + tokens * own)
    return max(candidates), max(activation, projection)


def _rotary(model: Mapping[str, Any], shape: Shape, element: int) -> float:
    """Bytes per token of the cosines and sines that all blocks share."""
    if model["model_type"] in ("gpt2", "bloom"):
        return 0.0
    heads = model["num_attention_heads"]
    query = next((linear.outputs for linear in shape.linears if linear.name == "q_proj"), shape.hidden)
    share = model.get("rotary_pct", 0.25) if model["model_type"] == "gpt_neox" else 1.0
    return float(2 * element * query // heads * share)
