"""How many parameters a model has, from its config.json alone: the shapes of one block and what stands outside it.

Torch-free, because ``launch`` plans without torch (transformers' own config classes import it). Shapes follow
transformers' modelling files of each family; tests compare the counts with real models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from conf.errors import ConfigError


@dataclass(frozen=True)
class Linear:
    """One linear layer of a block; ``name`` is the last part of its module name, which is what LoRA targets."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def size(self) -> int:
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class Shape:
    hidden: int
    """Width of the residual stream."""
    layers: int
    vocab: int
    """Rows of the embedding."""
    linears: tuple[Linear, ...]
    """Linear layers of one block."""
    norms: int
    """Elements of one block that are not in linear layers."""
    outside: int
    """Elements outside the blocks: embeddings, positions, final norm, and the head where it is not tied."""
    capped: bool = False
    """Logits are soft-capped after the head (Gemma 2)."""

    @property
    def block(self) -> int:
        return self.norms + sum(linear.size for linear in self.linears)

    @property
    def total(self) -> int:
        """Parameters of the model; tied weights count once."""
        return self.outside + self.layers * self.block

    def adapters(self, rank: int, targets: list[str] | None = None) -> int:
        """Parameters of LoRA adapters of ``rank`` on the linear layers named in ``targets`` (None: all of a block)."""
        chosen = [linear for linear in self.linears if targets is None or linear.name in targets]
        return self.layers * sum(rank * (linear.inputs + linear.outputs) for linear in chosen)


def _embeddings(model: Mapping[str, Any], vocab: int, hidden: int, *, tied: bool) -> int:
    return vocab * hidden * (1 if model.get("tie_word_embeddings", tied) else 2)


def _llama_like(
    model: Mapping[str, Any], *, kv_heads: int | None = None, head_dim: int | None = None, tied: bool = False
) -> Shape:
    """Llama and its relatives: RMSNorm, rotary positions, gated MLP, grouped-query attention."""
    kind, hidden, heads, vocab = (
        model["model_type"],
        model["hidden_size"],
        model["num_attention_heads"],
        model["vocab_size"],
    )
    width = model.get("head_dim") or head_dim or hidden // heads
    key_value = (model.get("num_key_value_heads") or kv_heads or heads) * width
    inner, mlp_bias = model["intermediate_size"], bool(model.get("mlp_bias", False)) and kind == "llama"
    bias = kind == "qwen2" or (bool(model.get("attention_bias", False)) and kind != "mistral")
    linears = (
        Linear("q_proj", hidden, heads * width, bias),
        Linear("k_proj", hidden, key_value, bias),
        Linear("v_proj", hidden, key_value, bias),
        Linear("o_proj", heads * width, hidden, bias and kind != "qwen2"),
        Linear("gate_proj", hidden, inner, mlp_bias),
        Linear("up_proj", hidden, inner, mlp_bias),
        Linear("down_proj", inner, hidden, mlp_bias),
    )
    of_heads = {"qwen3": 2 * width, "gemma3_text": 2 * width, "olmo2": heads * width + key_value}.get(kind, 0)
    norms = (4 if kind.startswith("gemma") else 2) * hidden + of_heads
    outside = _embeddings(model, vocab, hidden, tied=tied) + hidden
    capped = bool(model.get("final_logit_softcapping", 30.0)) if kind == "gemma2" else False
    return Shape(hidden, model["num_hidden_layers"], vocab, linears, norms, outside, capped)


def _phi3(model: Mapping[str, Any]) -> Shape:
    """Llama's block with its projections fused: query, key and value in one, gate and up in another."""
    plain = _llama_like({**model, "attention_bias": False})
    q_proj, k_proj, v_proj, o_proj, gate, up, down = plain.linears
    fused = (
        Linear("qkv_proj", q_proj.inputs, q_proj.outputs + k_proj.outputs + v_proj.outputs),
        o_proj,
        Linear("gate_up_proj", gate.inputs, gate.outputs + up.outputs),
        down,
    )
    return replace(plain, linears=fused)


def _phi(model: Mapping[str, Any]) -> Shape:
    """Biases everywhere, the head included; one LayerNorm per block, and one per head with ``qk_layernorm``."""
    hidden, heads, vocab = model["hidden_size"], model["num_attention_heads"], model["vocab_size"]
    width = hidden // heads
    key_value, inner = (model.get("num_key_value_heads") or heads) * width, model["intermediate_size"]
    linears = (
        Linear("q_proj", hidden, heads * width, True),
        Linear("k_proj", hidden, key_value, True),
        Linear("v_proj", hidden, key_value, True),
        Linear("dense", heads * width, hidden, True),
        Linear("fc1", hidden, inner, True),
        Linear("fc2", inner, hidden, True),
    )
    norms = 2 * hidden + (4 * width if model.get("qk_layernorm") else 0)
    outside = _embeddings(model, vocab, hidden, tied=False) + vocab + 2 * hidden
    return Shape(hidden, model["num_hidden_layers"], vocab, linears, norms, outside)


def _gpt2(model: Mapping[str, Any]) -> Shape:
    hidden, vocab = model["n_embd"], model["vocab_size"]
    inner = model.get("n_inner") or 4 * hidden
    linears = (
        Linear("c_attn", hidden, 3 * hidden, True),
        Linear("c_proj", hidden, hidden, True),
        Linear("c_fc", hidden, inner, True),
        Linear("c_proj", inner, hidden, True),
    )
    positions = model.get("n_positions", 1024) * hidden
    outside = _embeddings(model, vocab, hidden, tied=True) + positions + 2 * hidden
    return Shape(hidden, model["n_layer"], vocab, linears, 4 * hidden, outside)


def _fused(hidden: int, inner: int, attention_bias: bool) -> tuple[Linear, ...]:
    """The block of GPT-NeoX and BLOOM."""
    return (
        Linear("query_key_value", hidden, 3 * hidden, attention_bias),
        Linear("dense", hidden, hidden, attention_bias),
        Linear("dense_h_to_4h", hidden, inner, True),
        Linear("dense_4h_to_h", inner, hidden, True),
    )


def _gpt_neox(model: Mapping[str, Any]) -> Shape:
    hidden, vocab = model["hidden_size"], model["vocab_size"]
    linears = _fused(hidden, model["intermediate_size"], bool(model.get("attention_bias", True)))
    outside = _embeddings(model, vocab, hidden, tied=False) + 2 * hidden
    return Shape(hidden, model["num_hidden_layers"], vocab, linears, 4 * hidden, outside)


def _bloom(model: Mapping[str, Any]) -> Shape:
    """BLOOM's files name the width ``n_embed`` or ``hidden_size``; a norm follows the embedding."""
    hidden = model.get("hidden_size") or model["n_embed"]
    layers = model.get("n_layer") or model["num_hidden_layers"]
    outside = _embeddings(model, model["vocab_size"], hidden, tied=True) + 4 * hidden
    return Shape(hidden, layers, model["vocab_size"], _fused(hidden, 4 * hidden, True), 4 * hidden, outside)


def shape_of(model: Mapping[str, Any]) -> Shape:
    """The shape of a Hugging Face config (as a mapping with ``model_type``). ConfigError names what is missing."""
    kind = model.get("model_type")
    try:
        match kind:
            case "llama" | "qwen2" | "olmo2":
                return _llama_like(model)
            case "mistral":
                return _llama_like(model, kv_heads=8)
            case "qwen3":
                return _llama_like(model, kv_heads=32, head_dim=128)
            case "gemma2" | "gemma3_text":
                return _llama_like(model, kv_heads=4, head_dim=256, tied=True)
            case "phi":
                return _phi(model)
            case "phi3":
                return _phi3(model)
            case "gpt2":
                return _gpt2(model)
            case "gpt_neox":
                return _gpt_neox(model)
            case "bloom":
                return _bloom(model)
            case _:
                known = "llama, mistral, qwen2, qwen3, gemma2, gemma3_text, olmo2, phi, phi3, gpt2, gpt_neox, bloom"
                raise ConfigError(f"model: no parameter arithmetic for model_type {kind!r}; known are {known}")
    except KeyError as error:
        raise ConfigError(f"model.config: a {kind} config needs the key {error.args[0]!r}, which is missing") from None
