"""Whether a finished corpus is the one that a config means, and its raw files are those that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.durable import xxh3_of
from conf.errors import BadData, ConfigError
from conf.safety.secrets import redact
from conf.schema import RunConfig
from data_prep.corpus import identity
from data_prep.corpus.manifest import MANIFEST, read_manifest
from data_prep.jobs import new_files


def check_finished(cfg: RunConfig, path: Path) -> None:
    """Raise ConfigError or BadData unless the finished corpus at ``path`` is the one that ``cfg`` means."""
    manifest = read_manifest(path)
    asked = identity.identity(cfg)
    if manifest["config_sha256"] != identity.digest_of(asked):
        first = f"data.prepared: {path} holds another corpus; name another folder beside it (sources that did not "
        first += "change are reused from here), or delete the corpus and prepare again"
        raise ConfigError([first, *identity.differences(manifest["config"], redact(asked))])
    _refuse_new_files(cfg, path, manifest)
    finished = (path / MANIFEST).stat().st_mtime
    named = [(f"data.sources.{name}.path", each) for name, entries in manifest["files"].items() for each in entries]
    named += [("data.decontaminate.paths", each) for each in manifest.get("evaluation_files", ())]
    for key, entry in named:
        file = Path(entry["path"])
        if file.is_file() and (changed := _change(file, entry, finished)):
            raise BadData(
                f"{file} ({key}) has changed since {path} was prepared from it ({changed}); "
                "restore the file, or delete the corpus and prepare again."
            )


def _refuse_new_files(cfg: RunConfig, path: Path, manifest: dict[str, Any]) -> None:
    """Raise BadData if a folder or glob of the config holds a training file that the corpus does not know."""
    for name, leaf in identity.leaves(cfg.data.sources).items():
        key = f"data.sources.{name}"
        known = {entry["path"] for entry in manifest["files"].get(name, ())}
        for each in new_files(leaf, key, known):
            raise BadData(
                f"{each} ({key}.path) is new since {path} was prepared; move the file away, name another "
                "data.prepared, or delete the corpus and prepare again."
            )


def _change(file: Path, entry: dict[str, Any], finished: float) -> str:
    """How a raw file differs from its MANIFEST entry; its hash is taken only if it was touched since."""
    status = file.stat()
    if status.st_size != entry["bytes"]:
        return f"{entry['bytes']:,} bytes before, {status.st_size:,} bytes now"
    if status.st_mtime > finished and xxh3_of(file) != entry["xxh3"]:
        return "same size, different content"
    return ""
