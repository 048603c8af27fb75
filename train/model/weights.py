"""Gets the base from a local folder, from the Hugging Face hub, or from random weights stored in the run folder.

In every case the rest of the run sees one local Hugging Face folder, the same on every rank.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from conf.disk.folders import leads_out
from conf.durable import replacing_folder, sha256_of
from conf.errors import BadData, CannotCreate, ConfigError, CorralError, MissingInput, Unavailable
from conf.foreign.json_file import read_object
from conf.foreign.model_config import problems_of
from conf.schema import ModelConfig
from conf.whole_numbers import ceil_div
from data_prep.tokenizer.growth import check_vocabulary
from train.loading.pretrained import known_config, new_model
from train.ranks.group import Ranks

HUB_TIMEOUT_S = 5.0
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
ALWAYS = ["*.json", "*.txt", "*.model", "*.jinja"]
INDEX = ".index.json"
LOADED = (
    "model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}",
)  # fmt: skip
"""What transformers looks for, in this order."""
VOCAB_MULTIPLE = 8
"""A random model's embedding has a multiple of this many rows, because matrix units and shards need it."""


def base_folder(model: ModelConfig, ranks: Ranks, *, run_dir: Path, seed: int, vocab_size: int) -> Path:
    """The local folder with the base. Collective; every rank raises the error of any rank.

    Raises MissingInput (no such folder or model, gated), Unavailable (no network and not cached), ConfigError
    (a wrong ``model.config``), CannotCreate (run_dir/init not writable).
    """
    if model.path is None:
        assert model.config is not None, "the schema asks for path or config"
        mapping = model.config
        return ranks.once(lambda: _random_start(mapping, run_dir / "init", seed=seed, vocab_size=vocab_size))
    path = Path(model.path).expanduser()
    if path.is_dir() or not HUB_ID.match(model.path):
        return ranks.once(lambda: _local(path))
    return _from_hub(model.path, model.revision, ranks)


def _local(path: Path) -> Path:
    if not path.is_dir():
        raise MissingInput(f"model.path: no folder {path}; give a Hugging Face folder (config.json, weights) or id")
    if not (path / "config.json").is_file():
        raise MissingInput(f"model.path: {path} contains no config.json; give a Hugging Face model folder")
    if not weight_files(path):
        raise MissingInput(
            f"model.path: {path} contains no weights (*.safetensors); copy them, or set model.config for random weights"
        )
    return path


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a Hugging Face folder, sorted by name; only safetensors files if there are any."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def loaded_files(folder: Path) -> list[str]:
    """Those from which transformers reads the weights, by their paths in ``folder``. Raises BadData, as ``_shards``."""
    named = read_object(folder / "config.json", "copy it again", key="model.path").get("transformers_weights")
    for name in (named, *LOADED) if isinstance(named, str) else LOADED:
        if (folder / name).is_file():
            return _shards(folder / name) if name.endswith(INDEX) else [name]
    return []


def _shards(index: Path) -> list[str]:
    """The files that an index names. Raises BadData for an index that cannot be read, or that leaves its folder."""
    found = read_object(index, "copy it again", key="model.path").get("weight_map")
    names = sorted({str(name) for name in found.values()}) if isinstance(found, dict) else []
    if not names:
        raise BadData(f"model.path: {index} names no files of weights (weight_map); copy it again")
    if outside := next(filter(leads_out, names), ""):
        raise BadData(
            f"model.path: {index} names weights outside of its folder: {outside}; use a folder whose index does not"
        )
    return names


def base_hash(folder: Path) -> str:
    """sha256 over the names and sha256 of the weight files, in name order: it identifies the base.

    The files that are loaded are among them, wherever they lie in ``folder``. Raises BadData, as ``loaded_files``.
    """
    files = sorted({*weight_files(folder), *(folder / name for name in loaded_files(folder))})
    with ThreadPoolExecutor(max_workers=min(8, len(files))) as pool:
        sums = list(pool.map(_sha256, files))
    lines = "".join(f"{file.relative_to(folder).as_posix()} {total}\n" for file, total in zip(files, sums, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


NOT_COMPUTED_WITH = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "bos_token_id", "eos_token_id",
    "pad_token_id",
}  # fmt: skip
"""Keys of a config.json that no step reads: the run says the dtype, the corpus's tokenizer the ids."""


def base_config(folder: Path) -> dict[str, Any]:
    """What the base's config.json says of its computation. The weights alone do not tell another rope_theta.

    generation_config.json is not part of it: nothing here reads the base's.
    """
    return {
        key: value
        for key, value in read_object(folder / "config.json", "copy it again", key="model.path").items()
        if key not in NOT_COMPUTED_WITH
    }


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise MissingInput(f"model.path: cannot read {path}: {error.strerror}; check the file") from error


def _from_hub(repo: str, revision: str | None, ranks: Ranks) -> Path:
    """One rank per node downloads; then every rank opens the same snapshot in its node's cache."""
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
    """The snapshot folder of a hub model; from the cache alone if the hub does not answer within seconds."""
    from huggingface_hub import HfApi, errors, snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the client that the hub uses

    where = repo + (f" at revision {revision}" if revision else "")
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT_S)
        names = [file.rfilename for file in info.siblings or []]
        weights = "*.safetensors" if any(name.endswith(".safetensors") for name in names) else "pytorch_model*.bin"
        return Path(snapshot_download(repo, revision=info.sha, allow_patterns=[*ALWAYS, weights]))
    except errors.GatedRepoError as error:
        raise MissingInput(
            f"model.path: {repo} is gated on the Hugging Face hub; accept the licence on its page, then `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise MissingInput(
            f"model.revision: {repo} has no revision {revision} on the Hugging Face hub; give one of its revisions"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise MissingInput(
            f"model.path: {repo} is neither a local folder nor a model on the Hugging Face hub that you may read; "
            "check the name, or `hf auth login` for a private model"
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
            f"model.path: {where} is neither a local folder nor in the local cache, and the Hugging Face hub could not "
            f"be reached ({why}); run `hf download {repo}` on a machine with a network, or give a local folder"
        ) from error


def _random_start(mapping: dict[str, Any], folder: Path, *, seed: int, vocab_size: int) -> Path:
    """Build the model of ``mapping`` with weights drawn from ``seed`` on one CPU and keep it in ``folder``.

    A folder made from the same mapping, seed and vocabulary is used again. A different folder is refused, because a
    resumed run must continue from its own base.
    """
    origin = {"config": mapping, "seed": seed, "vocab_size": vocab_size}
    note = folder / "origin.json"
    if note.is_file():
        if json.loads(note.read_text(encoding="utf-8")) != json.loads(json.dumps(origin)):
            raise ConfigError(
                f"model.config: {folder} contains random weights of another run (other config, seed or vocabulary); "
                f"choose another run_dir, or remove {folder}"
            )
        return folder
    config = random_config(mapping, vocab_size=vocab_size)
    _write_random(config, folder, seed=seed, origin=origin)
    return folder


def _write_random(config: Any, folder: Path, *, seed: int, origin: dict[str, Any]) -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(config, dtype=torch.float32)
    try:
        with replacing_folder(folder) as temporary:  # what is there may be an unfinished one, without its note
            model.save_pretrained(temporary)
            (temporary / "origin.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CannotCreate(f"run_dir: cannot write the random weights to {folder}: {error.strerror}") from error


def random_config(mapping: dict[str, Any], *, vocab_size: int) -> Any:
    """The transformers config of ``mapping`` with the tokenizer's vocabulary. Raises ConfigError."""
    from huggingface_hub.errors import StrictDataclassError

    from train.families import family

    values = dict(mapping)
    model_type = values.pop("model_type", None)
    if not isinstance(model_type, str):
        raise ConfigError("model.config: model_type is missing; set it to the model's family, such as llama")
    check_vocabulary(mapping, vocab_size)
    if problems := [f"model.config: {problem}" for problem in problems_of(mapping)]:
        raise ConfigError(problems)  # before the class of the config, which makes a list of as many as it has layers
    values.setdefault("vocab_size", ceil_div(vocab_size, VOCAB_MULTIPLE) * VOCAB_MULTIPLE)
    if values.get("use_cache"):
        raise ConfigError(
            "model.config.use_cache: true makes transformers mix the samples of a packed row; remove the key"
        )
    dropouts = family(model_type).dropouts
    _check_keys(values, known_config(model_type))
    # Ids of special tokens belong to the tokenizer; a pad id here would freeze that token's embedding.
    values = {
        "bos_token_id": None,
        "eos_token_id": None,
        **dict.fromkeys(dropouts, 0.0),
        **values,
        "pad_token_id": None,
    }
    if any(values[key] for key in dropouts):
        wrong = ", ".join(key for key in dropouts if values[key])
        raise ConfigError(f"model.config: {wrong} must be 0, because the loss must depend on the batch alone")
    try:
        return known_config(model_type, **values)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigError(f"model.config: {' '.join(str(error).split())}") from error


def _check_keys(values: dict[str, Any], default: Any) -> None:
    """Refuse keys that transformers would silently ignore."""
    known = {*default.to_dict(), *default.attribute_map, "rope_theta", "rope_scaling"}
    problems = []
    for key in sorted(set(values) - known):
        near = difflib.get_close_matches(key, sorted(known), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        problems.append(f"model.config.{key}: model_type {default.model_type} has no such key{hint}")
    if problems:
        raise ConfigError(problems)
