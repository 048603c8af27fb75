"""Prefix tuning (Li and Liang 2021): learnt keys and values before every sample in every layer; the model is frozen.

They are a cache that the model finds full when it begins, without rotation, as in PEFT; sample positions follow them.
The paper's reparametrisation by an MLP is not used: values start small (normal, 0.02) instead.

Shape suffixes: B rows, V virtual tokens, N layers, K key/value heads, D head size.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conf.schema import PrefixTuning
from train.families import Family, family
from train.loading.adapters import CONFIG
from train.tuning import _virtual
from train.tuning._folder import Folder
from train.tuning._peft import write_folder
from train.tuning._start import generator_for

FOLDER = Folder(CONFIG, "PREFIX_TUNING")

SPREAD = 0.02
"""Standard deviation of the first keys and values: that of the families' own new weights."""


def apply(model: Any, tuning: PrefixTuning, family: Family, *, seed: int) -> nn.Module:
    """Hook the keys and values on."""
    layers, heads, size = _geometry(model.config)
    shape = (tuning.virtual_tokens, layers * 2 * heads * size)
    start = SPREAD * torch.randn(shape, generator=generator_for(f"{_virtual.NAME}.weight", seed))
    _virtual.attach(model, start)
    model.register_forward_pre_hook(partial(_fill_cache, geometry=(layers, heads, size)), with_kwargs=True)
    applied: nn.Module = model
    return applied


def _geometry(config: Any) -> tuple[int, int, int]:
    """Layers, key/value heads and head size."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, size


def _fill_cache(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, geometry: tuple[int, int, int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give the first call a cache that holds the prefix; later calls have it."""
    from transformers import DynamicCache

    layers, heads, size = geometry
    prefix, mask, changed = _virtual.values(model), _virtual.masked(model, kwargs), dict(kwargs)
    changed["attention_mask"] = torch.cat([mask.new_ones(len(mask), len(prefix)), mask], 1)
    if kwargs.get("position_ids") is not None:
        changed["position_ids"] = kwargs["position_ids"] + len(prefix)
    if not _virtual.seen(kwargs):
        cache = DynamicCache()
        both_N2KVD = prefix.view(len(prefix), layers, 2, heads, size).permute(1, 2, 3, 0, 4)
        for layer, (keys, values) in enumerate(both_N2KVD):
            cache.update(keys.expand(len(mask), -1, -1, -1), values.expand(len(mask), -1, -1, -1), layer)
        changed["past_key_values"] = cache
    return args, changed


def merge(model: nn.Module) -> nn.Module:
    """Raises ConfigError: no weight of the model can stand for keys and values of their own."""
    raise _virtual.no_plain_model("prefix")


def save(model: Any, tuning: PrefixTuning, folder: Path, *, base: str) -> None:
    """An adapter folder that PEFT loads."""
    from peft import PrefixTuningConfig

    layers, heads, size = _geometry(model.config)
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=tuning.virtual_tokens,
        token_dim=heads * size,
        num_layers=layers,
        num_attention_heads=heads,
        num_transformer_submodules=1,
    )
    write_folder(config, {"prompt_embeddings": _virtual.values(model)}, folder, base=base)


def load(model: Any, folder: Path) -> nn.Module:
    """``model``, the base, with the virtual tokens of ``folder``. Raises ValueError if they are another model's."""
    tuning = PrefixTuning("prefix", FOLDER.read(folder)["num_virtual_tokens"])
    return _virtual.load(apply(model, tuning, family(model.config.model_type), seed=0), folder)
