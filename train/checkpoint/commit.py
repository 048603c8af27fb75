"""Publishing a checkpoint: every rank writes its fragments, all agree, rank 0 renames. Old or new, never a mix.

1. Rank 0 decides the temporary folder and tells the others (two ranks that derive their own paths lose data).
2. Every rank writes and fsyncs its files and hashes them. 3. The ranks exchange (ok, hashes); one failure discards all.
4. Rank 0 writes MANIFEST.json and its seal, fsyncs, and renames the folder: from then on there is a checkpoint. 5. It
flushes the folder's entry and replaces LATEST. 6. After that it prunes.

``Saver`` brings these steps in order; here is what each does on the disk, without communication.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from conf.durable import write_whole
from conf.errors import StorageError
from train.checkpoint.check import fault_of_cover, seal_of
from train.checkpoint.files import fsync, write_tensors
from train.checkpoint.layout import MANIFEST, SEAL, folder_of, steps_before, steps_on_disk
from train.checkpoint.snapshot import Snapshot
from train.process.faultpoint import faultpoint
from train.ranks.group import Ranks


def made(temporary: Path) -> str:
    """Make the empty folder; returns the reason of a failure, or ""."""
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        return f"cannot create {temporary}: {error.strerror}"
    return ""


def write_part(folder: Path, part: Snapshot, ranks: Ranks) -> tuple[str, dict[str, Any]]:
    """Write and fsync this rank's two files. Returns the reason of a failure (or "") and their part of the MANIFEST."""
    place = f"{ranks.rank:05d}-of-{ranks.world:05d}.safetensors"
    parts = {f"state-{place}": part.tensors, f"rng-{place}": part.random}
    try:
        faultpoint("checkpoint.before_write")
        files = {name: write_tensors(folder / name, tensors) for name, tensors in parts.items()}
        faultpoint("checkpoint.after_fsync")
    except OSError as error:
        for name in parts:  # at once: on a disk that they have filled, the run could not write its records
            with contextlib.suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        return f"rank {ranks.rank} cannot write to {folder}: {error.strerror or error}", {}
    return "", {"files": files, "pieces": part.pieces, "state": f"state-{place}"}


def publish(temporary: Path, final: Path, manifest: dict[str, Any], entries: list[dict[str, Any]]) -> str:
    """Make ``temporary``, with the ranks' ``entries``, the checkpoint ``final``; the reason of a failure, or "".

    ``manifest``: all that does not follow from the entries; its ``tensors`` have no pieces yet.
    """
    for entry in entries:
        for name, (start, numel) in entry["pieces"].items():
            manifest["tensors"][name]["pieces"].append([entry["state"], start, numel])
    manifest["files"] = {name: file for entry in entries for name, file in entry["files"].items()}
    if gap := fault_of_cover(manifest):
        return f"cannot publish {final}: {gap}"
    content = (json.dumps(manifest) + "\n").encode()
    try:
        for name, data in ((MANIFEST, content), (SEAL, seal_of(content))):
            (temporary / name).write_bytes(data)
            fsync(temporary / name)
            faultpoint("checkpoint.manifest")
        fsync(temporary)
        faultpoint("checkpoint.before_rename")
        if final.exists():  # the same step again, after a resume: the old one gives way only now
            final.rename(final.with_name(f".old-{final.name}-{time.time_ns()}"))
        temporary.rename(final)
    except OSError as error:
        return f"cannot publish {final}: {error.strerror}"
    return ""


def settle(final: Path) -> str:
    """Make the entry of the published checkpoint durable, and LATEST name it; the reason of a failure, or ""."""
    try:
        fsync(final.parent)
        faultpoint("checkpoint.before_latest")
        _point(final.parent, final.name)
    except OSError as error:
        return (
            f"{final} is published, but its name may not outlast a power cut: {error.strerror}; older checkpoints stay"
        )
    return ""


def discard(temporary: Path) -> None:
    shutil.rmtree(temporary, ignore_errors=True)


def prune(run_dir: Path, keep: int, incident: int = 0) -> str:
    """Remove all checkpoints but the newest ``keep``, and leftovers; rename a folder before deleting it.

    ``incident``: the first bad step of an incident that is open; the checkpoint to go back to stays too. Returns the
    reason of a failure, or "".
    """
    try:
        faultpoint("checkpoint.before_prune")
        spared = steps_before(run_dir, incident)[:1] if incident else []
        for step in steps_on_disk(run_dir)[keep:]:
            if step in spared:
                continue
            path = folder_of(run_dir, step)
            path.rename(path.with_name(f".old-{path.name}"))
            faultpoint("checkpoint.in_prune")
        sweep(run_dir)
    except OSError as error:
        return f"older checkpoints in {run_dir / 'checkpoints'} could not be deleted: {error.strerror}"
    return ""


def withdraw(run_dir: Path, after: int) -> None:
    """Remove the checkpoints of steps later than ``after``, which a rollback has undone. Raises StorageError."""
    try:
        for step in steps_on_disk(run_dir):
            path = folder_of(run_dir, step)
            if step > after:
                path.rename(path.with_name(f".old-{path.name}-{time.time_ns()}"))
        _point(run_dir / "checkpoints", folder_of(run_dir, after).name)
    except OSError as error:
        raise StorageError(f"cannot remove an undone checkpoint of {run_dir}: {error.strerror}; free space") from None
    sweep(run_dir)


def _point(folder: Path, name: str) -> None:
    """Make LATEST name the checkpoint ``name``."""
    latest = folder / ".LATEST"
    write_whole(latest, name + "\n")
    fsync(latest)
    latest.replace(folder / "LATEST")
    fsync(folder)


def sweep(run_dir: Path, *more: str) -> None:
    """Delete the folders that an interrupted save or prune left behind, and those of the patterns ``more``."""
    for pattern in (".old-*", ".tmp-*", *more):
        for left in (run_dir / "checkpoints").glob(pattern):
            shutil.rmtree(left, ignore_errors=True)
