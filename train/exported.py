"""Loading what ``train.export`` wrote: a whole model, or what was trained on top of a base that the folder names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.errors import MissingInput
from train.tuning import bottleneck

WHOLE, PEFT = "config.json", "adapter_config.json"


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
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder))
