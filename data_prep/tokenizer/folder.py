"""transformers' tokenizer of a folder or hub id. The one place where tokenizers are loaded; their own code never runs
unless ``model.trust_remote_code`` says so.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from conf.errors import BadData, MissingInput, Unavailable
from conf.foreign.boundary import reading
from conf.foreign.code import KEY, say_that_it_runs, without_code
from conf.foreign.json_file import read_object
from conf.foreign.limits import MOST_TOKENS
from conf.foreign.model_config import read_model_config
from conf.foreign.panics import untold
from data_prep.rows import hub
from data_prep.tokenizer import growth, sentencepiece_model
from data_prep.tokenizer.growth import CURE

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
CONFIG = "config.json"
HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
"""What is fetched of a hub repository; the weights are not."""
CODE = "*.py"
"""Fetched too where the repository's code may run."""


def read(name_or_path: str, revision: str | None, *, trust_remote_code: bool) -> Any:
    """The tokenizer as AutoTokenizer reads it. Raises what ``load_tokenizer`` does."""
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return _from_folder(folder, trust_remote_code)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name_or_path):
        raise MissingInput(f"model.tokenizer: no folder {name_or_path}{_near(folder)}.")
    return _from_hub(name_or_path, revision, trust_remote_code)


def _near(path: Path) -> str:
    """The nearest existing parent, for a message."""
    parent = next((each for each in path.parents if each.is_dir()), None)
    if parent is None:
        return ""
    names = sorted(each.name for each in parent.iterdir() if each.is_dir())[:8]
    return f"; {parent} holds {', '.join(names) or 'no folders'}"


def _from_folder(folder: Path, trust_remote_code: bool) -> Any:
    present = [name for name in FILES if (folder / name).is_file()]
    if not present:
        raise MissingInput(f"model.tokenizer: {folder} holds no tokenizer (none of {', '.join(FILES)}).")
    for name in present:
        if name.endswith(".json"):
            read_object(folder / name, CURE, key="model.tokenizer")
    if (folder / CONFIG).is_file():  # transformers looks into it too
        read_model_config(folder / CONFIG, "model.tokenizer")
    _check_ids(folder)
    read = _auto(folder, trust_remote_code)
    if sentencepiece_model.MODEL in present and "tokenizer.json" not in present:
        with reading(f"model.tokenizer: {folder / sentencepiece_model.MODEL}", CURE), untold():
            return sentencepiece_model.with_its_ids(read, folder)
    return read


def _check_ids(folder: Path) -> None:
    """Raise BadData for a token id that is absurd: the library makes a table with a place for every id below it."""
    largest = max(growth.ids_in(folder), default=0)
    if not 0 <= largest < MOST_TOKENS:
        raise BadData(
            f"model.tokenizer: {folder} has a token with the id {largest:,}; ids are below {MOST_TOKENS:,}; {CURE}"
        )


def _auto(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    if trust_remote_code:
        say_that_it_runs(folder)
    with without_code(folder, KEY), reading(f"model.tokenizer: the tokenizer of {folder}", CURE), untold():
        # A word either way: without one, transformers asks on standard input whether to run the folder's code.
        read = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
        if not type(read).__module__.startswith("transformers.") and getattr(read, "is_fast", False):
            # Its class came with the folder. What is saved of it, such as a corpus's tokenizer, needs no code.
            return sentencepiece_model.with_backend(read, read.backend_tokenizer)
        return read


def _from_hub(name: str, revision: str | None, trust_remote_code: bool) -> Any:
    """From the local cache if it is there; else ask the hub once, with a timeout, before anything that retries.

    Its files are read as those of any folder, so that a hub id and a copy of it give one tokenizer.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        found = snapshot_download(name, revision=revision, local_files_only=True)
        return _from_snapshot(found, name, trust_remote_code)
    except (OSError, BadData, MissingInput):
        with hub.asking(name, "model.tokenizer", "it is not in the local cache either, so name a local folder"):
            HfApi().model_info(name, revision=revision, timeout=hub.TIMEOUT_S)
    try:
        wanted = [*HUB_FILES, CODE] if trust_remote_code else HUB_FILES
        folder = snapshot_download(name, revision=revision, allow_patterns=wanted)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise Unavailable(f"model.tokenizer: cannot fetch the tokenizer of {name}: {reason}") from error
    return _from_snapshot(folder, name, trust_remote_code)


def _from_snapshot(folder: str, name: str, trust_remote_code: bool) -> Any:
    """The tokenizer in a folder of the hub's cache; its errors name the hub id."""
    try:
        return _from_folder(Path(folder), trust_remote_code)
    except (BadData, MissingInput, Unavailable) as error:
        raise type(error)(str(error).replace(folder, name)) from error
