"""Loading what ``train.export`` wrote: a whole model, or what was trained on top of a base that the folder names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from conf.errors import MissingInput
from conf.methods import PrefixTuning, PromptTuning, Tuning
from train import tuning
from train.models import family
from train.tuning import bottleneck

WHOLE, PEFT = "config.json", "adapter_config.json"
VIRTUAL: dict[str, Callable[[int], Tuning]] = {
    "PROMPT_TUNING": partial(PromptTuning, "prompt"),
    "PREFIX_TUNING": partial(PrefixTuning, "prefix"),
}
"""The method by PEFT's name of it."""


def is_model(folder: Path) -> bool:
    """Whether ``folder`` holds a whole model or an adapter (which names its base)."""
    return any((folder / name).is_file() for name in (WHOLE, PEFT, bottleneck.CONFIG))


def load_model(folder: Path) -> Any:
    """The model of an exported folder, on the CPU. Raises MissingInput (66) if it, or its base, cannot be loaded."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        base = base_of(folder)
        model = AutoModelForCausalLM.from_pretrained(base or folder, local_files_only=True)
        return with_adapter(model, folder) if base else model
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise MissingInput(f"model={folder} cannot be loaded: {first}; export the model again") from error


def base_of(folder: Path) -> str | None:
    """Folder or hub id of the base that the adapter in ``folder`` belongs to; None for a whole model."""
    for name in (PEFT, bottleneck.CONFIG):
        if (folder / name).is_file():
            return str(json.loads((folder / name).read_text())["base_model_name_or_path"])
    return None


def with_adapter(model: Any, folder: Path) -> Any:
    """``model``, the base, with the adapter of ``folder``."""
    if (folder / bottleneck.CONFIG).is_file():
        return bottleneck.load(model, folder)
    made = json.loads((folder / PEFT).read_text())
    if made["peft_type"] in VIRTUAL:
        return with_virtual_tokens(model, made, load_file(folder / "adapter_model.safetensors")["prompt_embeddings"])
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder))


def with_virtual_tokens(model: Any, made: Mapping[str, Any], values: torch.Tensor) -> Any:
    """By our own hooks: ``generate`` of PEFT 0.21 fails on virtual tokens of several families in transformers 5."""
    method: Tuning = VIRTUAL[made["peft_type"]](made["num_virtual_tokens"])
    tuned = tuning.apply(model, method, family(model.config.model_type), seed=0)
    (weight,) = tuning.trainable(tuned).values()
    if weight.shape != values.shape:
        raise ValueError(f"virtual tokens of shape {list(values.shape)}, where the base takes {list(weight.shape)}")
    with torch.no_grad():
        weight.copy_(values)
    return tuned
