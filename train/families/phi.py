"""Phi-1.5 and Phi-2 (Li et al. 2023): attention and MLP in parallel, rotary positions in half of each head."""

from train.families.parts import layer_norm
from train.families.parts.family import Family
from train.families.parts.kept import Kept, Work, rotary, sent
from train.families.parts.shape import Config, Layer, Shape, embeddings, is_tied, linears

LAYERS = (
    Layer("self_attn.q_proj", "query"),
    Layer("self_attn.k_proj", "key"),
    Layer("self_attn.v_proj", "value"),
    Layer("self_attn.dense", "attention_out"),
    Layer("mlp.fc1", "mlp_in"),
    Layer("mlp.fc2", "mlp_out"),
)


def shape(config: Config) -> Shape:
    """Biases everywhere, the head included; one LayerNorm per block, and one per head with ``qk_layernorm``."""
    hidden, heads, vocab = config["hidden_size"], config["num_attention_heads"], config["vocab_size"]
    width, key_heads = hidden // heads, config.get("num_key_value_heads") or heads
    query, key, inner = heads * width, key_heads * width, config["intermediate_size"]
    biased = {layer.role for layer in LAYERS}
    return Shape(
        hidden=hidden,
        layers=config["num_hidden_layers"],
        vocab=vocab,
        heads=heads,
        key_heads=key_heads,
        query=query,
        key=key,
        inner=inner,
        linears=linears(LAYERS, hidden=hidden, query=query, key=key, inner=inner, biased=biased),
        norms=2 * hidden + (4 * width if config.get("qk_layernorm") else 0),
        outside=embeddings(config, vocab, hidden) + vocab + 2 * hidden,
        tied=is_tied(config),
        head_bias=True,
    )


def kept(config: Config, shape: Shape, work: Work) -> Kept:
    """One norm, whose output attention and the MLP both read; GPT-2's form of GELU."""
    h, s, query, inner = shape.hidden, work.element, shape.query, shape.inner
    heads_normed = s * (query + shape.key) if config.get("qk_layernorm") else 0
    attention = 2 * query + 2 * sent(shape, work.slices)
    return layer_norm.kept(
        shape,
        work,
        always=s * (h + attention + 4 * inner) + 4 * shape.heads + heads_normed,
        products=2,
        rotary=rotary(shape, s, share=float(config["partial_rotary_factor"])),
        norms=1,
    )


FAMILY = Family(
    model_type="phi",
    block_class="PhiDecoderLayer",
    layers=LAYERS,
    shape=shape,
    kept=kept,
    norm="layer",
    defaults={"partial_rotary_factor": 0.5},
    dropouts=("attention_dropout", "resid_pdrop", "embd_pdrop"),
)
