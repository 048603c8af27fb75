"""A run without checkpoints, on a fresh disk, looks for its copies and goes on from the newest that is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from conf.durable import commit, publish
from conf.errors import CannotCreate, ConfigError, StorageError
from conf.schema import RunConfig
from train.checkpoint.check import seal_of
from train.checkpoint.history import has_history
from train.checkpoint.layout import MANIFEST, SEAL, Damaged, folder_of
from train.copies.copier import RECORDS, SUMS
from train.copies.destination import KEY, Destination, Missing, folder_name, url_of
from train.process.run_dir import append
from train.ranks.group import Ranks


def bring_home(cfg: RunConfig, run_dir: Path, ranks: Ranks) -> None:
    """Put the newest good copy into ``run_dir``, which all ranks share, if that holds no checkpoint. Collective.

    Raises Unavailable (69) if the copies cannot be looked at, because the run might begin again beside its own past;
    StorageError (74) if there are copies and none verifies, CannotCreate (73) for copies with resume=never.
    """
    if url := url_of(cfg):
        ranks.once(lambda: _bring(url, cfg, run_dir))


def _bring(url: str, cfg: RunConfig, run_dir: Path) -> None:
    if "://" not in url and Path(url).resolve() == run_dir.resolve():
        raise ConfigError(f"{KEY}: {url} is run_dir itself; name a place on another file system")
    there = Destination(url)  # a driver that is missing is named now, not at the first checkpoint
    if has_history(run_dir):
        return
    steps = there.steps()
    if steps and cfg.resume.mode == "never":
        raise CannotCreate(f"{url} holds copies of checkpoints and resume=never; set another name or {KEY}")
    faults: dict[int, str] = {}
    for step in steps:
        print(f"corral: run_dir={run_dir} holds no checkpoint; bringing {url}/{folder_name(step)} home", flush=True)
        try:
            _fetch(there, step, run_dir)
            break
        except (Damaged, Missing) as fault:
            faults[step] = str(fault)
            print(f"corral: {url}/{folder_name(step)} is not used: {fault}; trying the one before it", flush=True)
    else:
        if faults:
            said = "; ".join(f"{folder_name(step)}: {fault}" for step, fault in faults.items())
            raise StorageError(
                f"{url} holds no copy that verifies ({said}). Restore run_dir/checkpoints from a backup, or start over "
                "with another name"
            )
    for step, reason in faults.items():  # now that events.jsonl is at home too
        event = {"time": round(time.time(), 3), "kind": "fallback", "step": step, "reason": reason}
        append(run_dir / "events.jsonl", {**event, "path": f"{url}/{folder_name(step)}"})


def _fetch(there: Destination, step: int, run_dir: Path) -> None:
    """Raises Damaged for a copy that is not what was written, and leaves nothing of it behind."""
    final = folder_of(run_dir, step)
    temporary = final.with_name(f".tmp-home-{final.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        manifest, seal = there.read(f"{final.name}/{MANIFEST}"), there.read(f"{final.name}/{SEAL}")
        if seal != seal_of(manifest):
            raise Damaged(f"{MANIFEST} does not have the sum in {SEAL}")
        for name, entry in _files(manifest).items():
            if _get(there, f"{final.name}/{name}", temporary / name) != (entry["bytes"], entry["sha256"]):
                raise Damaged(f"{name} does not have its recorded size and sha256")
        records = _records(there, final.name)
        commit(temporary / MANIFEST, manifest)
        commit(temporary / SEAL, seal)
        for name, content in records.items():
            if not (run_dir / name).exists():
                commit(run_dir / name, content)
        publish(temporary, final)
        commit(final.parent / "LATEST", f"{final.name}\n".encode())
    except OSError as error:
        why = error.strerror or str(error)
        raise StorageError(f"cannot write {final}: {why}; free some space and start again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _files(manifest: bytes) -> dict[str, Any]:
    files: dict[str, Any] = json.loads(manifest)["files"]
    if any("/" in name or name.startswith(".") for name in files):
        raise Damaged(f"{MANIFEST} names a file outside of its folder")
    return files


def _get(there: Destination, name: str, path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as out:
        for part in there.parts(name):
            digest.update(part)
            out.write(part)
            size += len(part)
        out.flush()
        os.fsync(out.fileno())
    return size, digest.hexdigest()


def _records(there: Destination, folder: str) -> dict[str, bytes]:
    """Content of the run's records by name, as RECORDS.sha256 has it."""
    found = {}
    for line in there.read(f"{folder}/{SUMS}").decode().splitlines():
        total, _, place = line.partition("  ")
        name = place.removeprefix("records/")
        if name not in RECORDS:
            continue
        content = there.read(f"{folder}/records/{name}")
        if hashlib.sha256(content).hexdigest() != total:
            raise Damaged(f"{place} does not have the sum in {SUMS}")
        found[name] = content
    return found
