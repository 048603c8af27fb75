"""The one place where transformers reads a model's files, and makes models of configs.

A folder may bring Python code (``auto_map`` in its config.json). It runs only with ``model.trust_remote_code=true``.
Every call here says so either way: without a word, transformers asks on standard input, where ``yes |`` or a piped
line of a talk would answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.errors import BadData
from conf.foreign.boundary import reading
from conf.foreign.code import KEY, say_that_it_runs, without_code
from conf.foreign.model_config import read_model_config
from train.families import families, shape_of
from train.process.causes import named

CURE = "give another model, or copy its files again"
PICKLED = (
    "give the model as *.safetensors: of pickled weights (*.bin) only plain tensors are read, because a pickle may run "
    "code"
)
CONFIG = "config.json"
FEW = 64_000_000
"""Weights: a place for each of so many is no harm, and what reads the files says more of what is wrong with them."""
LEAST_BYTES = 0.4
"""Of a weight in a file: 4-bit weights have half a byte, and scales."""


def read_config(folder: Path, *, key: str, trust_remote_code: bool) -> Any:
    """The transformers config in ``folder``, which the setting ``key`` names. Raises BadData."""
    from transformers import AutoConfig

    read_model_config(folder / CONFIG, key)
    if trust_remote_code:
        say_that_it_runs(folder)
    with without_code(folder, KEY), reading(f"{key}: {folder / CONFIG}", CURE):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        if not trust_remote_code:
            # The file may name an attention kernel of the hub, which is code too; the run chooses attention itself.
            config._attn_implementation = None
            vars(config).pop("auto_map", None)  # else an export would promise code that it does not hold
        return config


def known_config(model_type: str, **values: Any) -> Any:
    """transformers' own config class for ``model_type``, filled in. Raises what the class does."""
    from transformers import AutoConfig

    return AutoConfig.for_model(model_type, **values)


def read_model(folder: Path, config: Any, *, key: str, trust_remote_code: bool, **options: Any) -> Any:
    """The causal language model in ``folder``, which the setting ``key`` names.

    ``options`` are transformers' own. Raises BadData for files that cannot be read or that lack weights, which
    transformers would draw at random; and what ends a rank whatever it reads: OutOfMemory, DistributedFailure,
    StorageError.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    _refuse_far_too_few(folder, config, key)
    logging.disable_progress_bar()  # every rank would print a bar between the run's lines
    pickled = not any(folder.glob("*.safetensors"))
    with reading(f"{key}: the weights in {folder}", PICKLED if pickled else CURE):
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                weights_only=True,
                output_loading_info=True,
                **options,
            )
        except Exception as error:  # of any library: a lost peer, a device or full memory is not the file's doing
            if (cause := named(error)) is not None:
                raise cause from error
            raise
    if missing := sorted(info["missing_keys"]):
        names = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise BadData(
            f"{key}: {folder} lacks weights ({names}), which would have been random; give a complete model folder"
        )
    return model


def _refuse_far_too_few(folder: Path, config: Any, key: str) -> None:
    """Raise BadData for weight files far smaller than the model of ``config``, before there is a place for each weight.

    A config.json without its sizes is that of the largest model: transformers' defaults are a model of billions.
    """
    if getattr(config, "model_type", "") not in families():
        return
    count = shape_of(config.to_dict()).total
    held = sum(path.stat().st_size for kind in ("safetensors", "bin") for path in folder.rglob(f"*.{kind}"))
    if count > FEW and count * LEAST_BYTES > held:
        raise BadData(
            f"{key}: {folder / CONFIG} describes a model of {count:,} weights, and the files of weights beside it have "
            f"{held:,} bytes; give a complete model folder"
        )


def new_model(config: Any, **options: Any) -> Any:
    """A causal language model of ``config``, with random weights. ``options`` are transformers' own."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
