"""Virtual tokens before every sample, by hooks on the transformers model, so that it stays what it is to all others.

PEFT's own forward is not used: it drops position ids, so that left-padded prompts are answered as if the padding
were words, and it returns logits of the virtual tokens too. Its folder format is; the same rows give the same logits.

Shape suffixes: B rows, V virtual tokens, L longest sample, H width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from conf.errors import ConfigError, InternalError
from train.tuning._peft import WEIGHTS

NAME = "virtual_tokens"
"""The name under which the model holds the learnt embedding, so ``virtual_tokens.weight`` is the parameter's."""


def attach(model: nn.Module, start: torch.Tensor) -> None:
    """Freeze ``model`` and give it an embedding that begins as ``start`` [V, width], the only one that is trained."""
    model.requires_grad_(False)
    first = next(model.parameters())
    count, width = start.shape
    model.add_module(NAME, nn.Embedding(count, width, _weight=start.to(first.device, first.dtype)))


def taken(model: nn.Module) -> int:
    """How many positions before every sample the virtual tokens of ``model`` take; 0 without any."""
    encoder = getattr(model, NAME, None)
    return encoder.num_embeddings if isinstance(encoder, nn.Embedding) else 0


def values(model: nn.Module) -> torch.Tensor:
    """All learnt embeddings, [V, width]; a call of the module, so that ZeRO-3 gathers its weight."""
    encoder = model.get_submodule(NAME)
    assert isinstance(encoder, nn.Embedding)
    found: torch.Tensor = encoder(torch.arange(taken(model), device=encoder.weight.device))
    return found


def seen(kwargs: dict[str, Any]) -> int:
    """How many tokens are in the cache that this call continues from; the virtual ones are among them.

    0 without ``use_cache``: ``generate`` then passes whole rows, and the cache of a prefix back with them.
    """
    cache = kwargs.get("past_key_values")
    return 0 if cache is None or kwargs.get("use_cache") is False else int(cache.get_seq_length())


def masked(model: nn.Module, kwargs: dict[str, Any]) -> torch.Tensor:
    """The mask [B, L] of a forward pass, L with what is in the cache but for virtual tokens.

    ``generate`` leaves it out where nothing is padded. Raises InternalError for packed rows: there is no place before
    every sample.
    """
    mask: torch.Tensor | None = kwargs.get("attention_mask")
    if kwargs.get("cu_seq_lens_q") is not None or (mask is not None and mask.dim() != 2):
        raise InternalError("virtual tokens need padded rows of one sample; use data.pack=none and attention=sdpa")
    if mask is not None:
        return mask
    ids: torch.Tensor = kwargs["input_ids"]
    return ids.new_ones(len(ids), ids.shape[1] + max(0, seen(kwargs) - taken(model)))


def load(model: Any, folder: Path) -> nn.Module:
    """Give ``model``, which has untrained virtual tokens, those of ``folder``. Raises ValueError for another shape.

    PEFT 0.21 does not load them into every family: its ``generate`` fails with transformers 5.
    """
    saved = load_file(folder / WEIGHTS)["prompt_embeddings"]
    weight = model.get_submodule(NAME).weight
    if weight.shape != saved.shape:
        raise ValueError(f"virtual tokens of shape {list(saved.shape)}, where the base takes {list(weight.shape)}")
    with torch.no_grad():
        weight.copy_(saved)
    loaded: nn.Module = model
    return loaded


def no_plain_model(method: str) -> ConfigError:
    """Why ``merge=true`` is refused."""
    return ConfigError(
        f"merge=true folds what was trained into the weights, and what tuning={method} adds cannot be: it is no change "
        "of a weight; use merge=false"
    )
