"""Where the base weights come from: a local folder, the Hugging Face hub, or a random start kept in the run folder.

Whatever the source, the rest of the run sees one local Hugging Face folder, the same on every rank.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from conf.errors import BadData, CannotCreate, ConfigError, CorralError, MissingInput, Unavailable
from conf.schema import ModelConfig
from train.distributed import Ranks

T = TypeVar("T")

HUB_TIMEOUT_S = 5.0
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
ALWAYS = ["*.json", "*.txt", "*.model", "*.jinja"]
VOCAB_MULTIPLE = 8
"""A random model's embedding has a multiple of this many rows: matrix units like it, and so do shards."""


def base_folder(model: ModelConfig, ranks: Ranks, *, run_dir: Path, seed: int, vocab_size: int) -> Path:
    """The local folder that holds the base model. Collective; an error on one rank is raised on all.

    Raises MissingInput (no such folder or model, gated), Unavailable (no network and not cached), ConfigError
    (a wrong ``model.config``), CannotCreate (run_dir/init not writable).
    """
    if model.path is None:
        assert model.config is not None, "the schema asks for path or config"
        mapping = model.config
        return once(ranks, lambda: _random_start(mapping, run_dir / "init", seed=seed, vocab_size=vocab_size))
    path = Path(model.path).expanduser()
    if path.is_dir() or not HUB_ID.match(model.path):
        return once(ranks, lambda: _local(path))
    return _from_hub(model.path, model.revision, ranks)


def once(ranks: Ranks, work: Callable[[], T]) -> T:
    """``work()`` of the first rank, on every rank; its CorralError too."""
    outcome: tuple[T | None, CorralError | None] = (None, None)
    if ranks.is_main:
        try:
            outcome = (work(), None)
        except CorralError as error:
            outcome = (None, error)
    value, failure = ranks.broadcast(outcome)
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]


def _local(path: Path) -> Path:
    if not path.is_dir():
        raise MissingInput(f"model.path: no folder {path}; give a Hugging Face folder (config.json and weights) or id")
    if not (path / "config.json").is_file():
        raise MissingInput(f"model.path: {path} holds no config.json, so it is not a Hugging Face model folder")
    if not weight_files(path):
        raise MissingInput(f"model.path: {path} holds no weights (*.safetensors); to start from none, set model.config")
    return path


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a Hugging Face folder, sorted by name; safetensors if there are any."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def base_hash(folder: Path) -> str:
    """sha256 over the names and sha256 of the weight files, in name order: which weights the run started from."""
    files = weight_files(folder)
    with ThreadPoolExecutor(max_workers=min(8, len(files))) as pool:
        sums = list(pool.map(_sha256, files))
    lines = "".join(f"{file.name} {total}\n" for file, total in zip(files, sums, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MissingInput(f"model.path: cannot read {path}: {error.strerror}") from error


def _from_hub(repo: str, revision: str | None, ranks: Ranks) -> Path:
    """One rank per node downloads; then every rank finds the same snapshot in its node's cache."""
    from huggingface_hub import snapshot_download

    outcome: tuple[str, CorralError | None] = ("", None)
    if ranks.local_rank == 0:
        try:
            outcome = (_download(repo, revision).name, None)
        except CorralError as error:
            outcome = ("", error)
    outcomes = ranks.gather(outcome)
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return Path(snapshot_download(repo, revision=outcomes[0][0], local_files_only=True))


def _download(repo: str, revision: str | None) -> Path:
    """The snapshot folder of a hub model, from the cache alone if the hub cannot be reached within seconds."""
    from huggingface_hub import HfApi, errors, snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of whichever client the hub uses

    where = repo + (f" at revision {revision}" if revision else "")
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT_S)
        names = [each.rfilename for each in info.siblings or []]
        weights = "*.safetensors" if any(name.endswith(".safetensors") for name in names) else "pytorch_model*.bin"
        return Path(snapshot_download(repo, revision=info.sha, allow_patterns=[*ALWAYS, weights]))
    except errors.GatedRepoError as error:
        raise MissingInput(
            f"model.path: {repo} is gated on the Hugging Face hub; accept its licence on its page, then `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise MissingInput(f"model.revision: {repo} has no revision {revision} on the Hugging Face hub") from error
    except errors.RepositoryNotFoundError as error:
        raise MissingInput(
            f"model.path: {repo} is neither a folder here nor a model on the Hugging Face hub that you may read; "
            "check the name, or `hf auth login` if it is private"
        ) from error
    except (OSError, ValueError, HTTPError) as error:
        return _from_cache(repo, revision, where, error)


def _from_cache(repo: str, revision: str | None, where: str, reason: Exception) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        return _local(Path(snapshot_download(repo, revision=revision, local_files_only=True)))
    except (OSError, ValueError, HTTPError, MissingInput) as error:
        why = str(reason).split("\n")[0][:160] or type(reason).__name__
        raise Unavailable(
            f"model.path: {where} is neither a folder here nor in the local cache, and the Hugging Face hub could not "
            f"be reached ({why}); download it where there is a network (`hf download {repo}`), or give a local folder"
        ) from error


def _random_start(mapping: dict[str, Any], folder: Path, *, seed: int, vocab_size: int) -> Path:
    """Build the model of ``mapping`` with weights drawn from ``seed`` on one CPU and keep it in ``folder``.

    A folder made from the same mapping, seed and vocabulary is used again; another one is refused, because a resumed
    run must continue from its own start.
    """
    origin = {"config": mapping, "seed": seed, "vocab_size": vocab_size}
    note = folder / "origin.json"
    if note.is_file():
        if json.loads(note.read_text()) != json.loads(json.dumps(origin)):
            raise ConfigError(
                f"model.config: {folder} holds the start of another run (other config, seed or vocabulary); "
                "choose another run_dir, or remove this one"
            )
        return folder
    config = random_config(mapping, vocab_size=vocab_size)
    _write_random(config, folder, seed=seed, origin=origin)
    return folder


def _write_random(config: Any, folder: Path, *, seed: int, origin: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        model.save_pretrained(temporary)
        (temporary / "origin.json").write_text(json.dumps(origin, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)  # an unfinished one, without its note
        temporary.rename(folder)
    except OSError as error:
        raise CannotCreate(f"run_dir: cannot write the starting weights to {folder}: {error.strerror}") from error


def random_config(mapping: dict[str, Any], *, vocab_size: int) -> Any:
    """The transformers config of ``mapping``, its vocabulary that of the tokenizer. Raises ConfigError."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    from train.models import family

    values = dict(mapping)
    model_type = values.pop("model_type", None)
    if not isinstance(model_type, str):
        raise ConfigError("model.config: model_type is missing; it names the family, such as llama")
    rows = values.setdefault("vocab_size", -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE)
    if not isinstance(rows, int) or rows < vocab_size:
        raise ConfigError(
            f"model.config.vocab_size: {rows} is less than the tokenizer's {vocab_size}; leave it out to follow it"
        )
    if values.get("use_cache"):
        raise ConfigError(
            "model.config.use_cache: true makes transformers mix the samples of a packed row; take it out"
        )
    dropouts = family(model_type).dropouts
    _check_keys(values, AutoConfig.for_model(model_type))
    # Ids of special tokens belong to the tokenizer; a pad id here would freeze that token's embedding.
    values = {
        "bos_token_id": None,
        "eos_token_id": None,
        **dict.fromkeys(dropouts, 0.0),
        **values,
        "pad_token_id": None,
    }
    if any(values[key] for key in dropouts):
        raise ConfigError(f"model.config: {', '.join(key for key in dropouts if values[key])} must be 0 in training")
    try:
        return AutoConfig.for_model(model_type, **values)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigError(f"model.config: {' '.join(str(error).split())}") from error


def _check_keys(values: dict[str, Any], default: Any) -> None:
    """Refuse keys that transformers would silently keep without a meaning."""
    known = {*default.to_dict(), *default.attribute_map, "rope_theta", "rope_scaling"}
    problems = []
    for key in sorted(set(values) - known):
        near = difflib.get_close_matches(key, sorted(known), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        problems.append(f"model.config.{key}: no such key for model_type {default.model_type}{hint}")
    if problems:
        raise ConfigError(problems)


def check_complete(folder: Path, missing: list[str]) -> None:
    """Raise BadData if weights were absent from ``folder``: transformers would draw them at random."""
    if missing:
        names = ", ".join(sorted(missing)[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise BadData(f"model.path: {folder} lacks weights ({names}); they would have been random")
