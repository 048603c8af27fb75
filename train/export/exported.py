"""Loads the folder that ``train.export`` wrote: a whole model, or an adapter for a base that the folder names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.errors import BadData, MissingInput, shown
from conf.foreign.boundary import reading
from train import tuning
from train.loading.pretrained import read_config, read_model

WHOLE = "config.json"
CURE = "export the model again"
ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SAMPLING = {"temperature": float, "top_p": float, "min_p": float, "repetition_penalty": float, "top_k": int}
LARGEST = 1e6


def is_model(folder: Path) -> bool:
    """Whether ``folder`` holds a whole model or an adapter (which names its base)."""
    return (folder / WHOLE).is_file() or tuning.holds_adapters(folder)


def load_model(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The model of an exported folder, on the CPU. Raises MissingInput (66) if its base is not there, BadData (65).

    ``trust_remote_code``: code that the folder or its base brings may run.
    """
    with reading(f"model={folder}", CURE):
        base = tuning.base_of(folder)
    whole = _base_folder(base, folder) if base else folder
    config = read_config(whole, key="model", trust_remote_code=trust_remote_code)
    model = read_model(whole, config, key="model", trust_remote_code=trust_remote_code)
    model.generation_config = _sampling(model, whole)
    with reading(f"model={folder}", CURE):
        return tuning.load(model, folder) if base else model


def _sampling(model: Any, folder: Path) -> Any:
    """What the folder's generation_config.json says of the ends of answers and of sampling, and nothing else of it.

    transformers takes values of any type there, and fails on them in the middle of an answer. Raises BadData.
    """
    from transformers import GenerationConfig

    said, vocabulary = model.generation_config.to_dict(), int(model.config.get_text_config().vocab_size)
    found = {key: said[key] for key in (*ENDS, *SAMPLING) if said.get(key) is not None}
    for key, value in found.items():
        values = value if isinstance(value, list) and key in ENDS else [value]
        kind, most = (int, vocabulary - 1) if key in ENDS else (SAMPLING[key], LARGEST)
        if not values or not all(type(each) in (kind, int) and 0 <= each <= most for each in values):
            raise BadData(f"model={folder}: generation_config.json: {key} cannot be {shown(value)}; {CURE}")
    return GenerationConfig(**found)


def _base_folder(base: str, folder: Path) -> Path:
    """The folder of ``base``, which the adapters in ``folder`` name: a folder, or a hub id that this machine has."""
    from huggingface_hub import snapshot_download

    if Path(base).expanduser().is_dir():
        return Path(base).expanduser()
    try:
        return Path(snapshot_download(base, local_files_only=True))
    except (OSError, ValueError) as error:
        raise MissingInput(
            f"model={folder} names a base that is not on this machine ({base}); `hf download {base}`, or copy it here"
        ) from error
