"""Whether a checkpoint is what was written, and the newest that is.

MANIFEST.sha256 seals MANIFEST.json, in the format of ``sha256sum``; the MANIFEST holds the sizes and sums of all other
files, and says where every element of every tensor lies. So no byte is trusted that no sum covers. The ranks deal the
files out among themselves, because one process hashes 1 to 2 GB/s and a run may have hundreds of gigabytes.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from conf.disk.folders import leads_out
from conf.durable import sha256_of
from conf.errors import StorageError, shown
from train.checkpoint.layout import (
    MANIFEST,
    READABLE,
    SEAL,
    Damaged,
    Stored,
    folder_of,
    in_arrays,
    steps_before,
    steps_on_disk,
)
from train.checkpoint.manifest_shape import fault_of_shape
from train.process.run_dir import append
from train.ranks.group import Ranks

ALONE = Ranks()
THREADS = 4
"""That hash at once on a rank that has several files, such as the one that reads the checkpoint of many."""


def seal_of(manifest: bytes) -> bytes:
    """The content of MANIFEST.sha256: what ``sha256sum MANIFEST.json`` prints."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def read_manifest(path: Path) -> dict[str, Any]:
    """The MANIFEST of the checkpoint at ``path``, sealed and complete.

    Raises Damaged, and StorageError for one without a seal or of another version, which is not damage.
    """
    try:
        content = (path / MANIFEST).read_bytes()
        seal = (path / SEAL).read_bytes() if (path / SEAL).exists() else None
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST} is missing") from None
    except OSError as error:
        raise Damaged(f"{MANIFEST} or {SEAL} cannot be read: {error.strerror}") from None
    if seal is None:
        raise _unsealed(path, content)
    if seal != seal_of(content):
        raise Damaged(f"{MANIFEST} does not have the sum in {SEAL}")
    try:
        manifest: dict[str, Any] = json.loads(content)
        version = manifest["version"]
        fault = fault_of_shape(manifest) if version in READABLE else ""
        gap = "" if fault or version not in READABLE else fault_of_cover(manifest)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # written and sealed by something else
        fault, gap, version = "it is no such object", "", READABLE[0]
    if fault:
        raise Damaged(f"{MANIFEST} is not that of a checkpoint ({fault})")
    if version not in READABLE:
        raise StorageError(
            f"{path} has version {shown(version)}, and this release reads {READABLE[0]} to {READABLE[-1]}; use the "
            "release that wrote it, or start over with another name or run_dir"
        )
    if gap:
        raise Damaged(gap)
    return manifest


def _unsealed(path: Path, content: bytes) -> StorageError:
    """A version without seals asks to be sealed by the user; in any other the seal was lost."""
    try:
        old = json.loads(content)["version"] == 1
    except (ValueError, LookupError, TypeError):
        old = False
    if not old:
        return Damaged(f"{SEAL} is missing")
    return StorageError(
        f"{path} was written by a release that stored no sum of {MANIFEST}, so damage to it could not be seen; if you "
        f"trust it, seal it: cd {path} && sha256sum {MANIFEST} > {SEAL}"
    )


def fault_of_cover(manifest: Mapping[str, Any]) -> str:
    """Which tensor's elements are not all stored exactly once, in files that have a sum; empty text if none."""
    files = manifest["files"]
    if not files:
        return f"{MANIFEST} lists no files"
    if outside := next(filter(leads_out, files), ""):
        return f"{MANIFEST} names a file outside of its folder: {outside}"
    for name, tensor in manifest["tensors"].items():
        end = 0
        for file, start, numel in sorted(tensor["pieces"], key=lambda piece: piece[1]):
            if file not in files:
                return f"{name} lies in {file}, which {MANIFEST} does not list"
            if start != end or numel < 1:
                return f"{name}: elements from {min(start, end)} on are stored {'twice' if start < end else 'nowhere'}"
            end = start + numel
        if end != math.prod(tensor["shape"]):
            return f"{name}: {end} elements are stored, its shape {tensor['shape']} has {math.prod(tensor['shape'])}"
    return ""


def fault_of_file(file: Path, entry: Mapping[str, Any]) -> str:
    """Why ``file`` is not the one with the size and sum of ``entry``; empty text if it is."""
    try:
        size = file.stat().st_size
        if size != entry["bytes"]:
            return f"{file.name} has {size} bytes instead of {entry['bytes']}"
        if sha256_of(file) != entry["sha256"]:
            return f"{file.name} does not have its recorded sha256"
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"
    return ""


def dealt(files: Mapping[str, Mapping[str, Any]], count: int) -> list[list[str]]:
    """The names of ``files`` for each of ``count`` ranks: the largest first, each to the rank with the fewest bytes."""
    shares: list[list[str]] = [[] for _ in range(count)]
    loads = [(0, rank) for rank in range(count)]  # a heap: every rank deals out the files of thousands
    for name in sorted(files, key=lambda name: (-files[name]["bytes"], name)):
        load, least = loads[0]
        shares[least].append(name)
        heapq.heapreplace(loads, (load + files[name]["bytes"], least))
    return shares


def verified(path: Path, ranks: Ranks = ALONE) -> Stored:
    """The checkpoint at ``path`` if every byte is as written. Collective: all ranks see the same folder.

    Raises what ``read_manifest`` raises, on every rank.
    """
    # The first rank reads it for all, and sends the places of the tensors in arrays: under ZeRO-3 every parameter has a
    # piece on every rank, and a million lists would take each rank seconds and hundreds of megabytes.
    manifest = ranks.once(lambda: in_arrays(read_manifest(path)))
    own = dealt(manifest["files"], ranks.world)[ranks.rank]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda name: fault_of_file(path / name, manifest["files"][name]), own))
    fault = next(filter(None, (each for faults in ranks.gather(found) for each in faults)), "")
    if fault:
        raise Damaged(fault)
    return Stored(path, manifest)


def latest_good(run_dir: Path, step: int | None = None) -> Stored:
    """The newest checkpoint whose every byte verifies, or that of ``step``: for those who only read a run.

    A damaged one is named on stderr and left alone. Raises StorageError (74) if there is none that verifies.
    """
    steps = [step] if step is not None else steps_on_disk(run_dir)
    return _newest(run_dir, steps, ALONE, lambda path, fault: print(_passing(path, fault), file=sys.stderr))


def newest_good(run_dir: Path, ranks: Ranks, before: int = 0) -> Stored:
    """As ``latest_good``, for the run itself, which puts a damaged one aside (``pass_over``). Collective.

    ``before``: only of steps before this bad one, in the order of ``steps_before``; 0: of all.
    Raises StorageError (74) if there is none: a run with a history never starts again from step 0 by itself.
    """
    steps = ranks.once(lambda: steps_before(run_dir, before))
    return _newest(run_dir, steps, ranks, lambda path, fault: pass_over(run_dir, path, fault, ranks))


def _newest(run_dir: Path, steps: Iterable[int], ranks: Ranks, damaged: Callable[[Path, str], None]) -> Stored:
    faults = []
    for step in steps:
        path = folder_of(run_dir, step)
        try:
            stored = verified(path, ranks)
            if stored.step != step:
                raise Damaged(f"{MANIFEST} is that of step {stored.step}")
            return stored
        except Damaged as fault:
            faults.append(f"{path.name}: {fault}")
            damaged(path, str(fault))
    raise StorageError(
        f"{run_dir / 'checkpoints'} holds no checkpoint that verifies ({'; '.join(faults) or 'no step-* folder'}). "
        "Restore one from a backup, or start over with another name or run_dir"
    )


def _passing(path: Path, fault: str) -> str:
    return f"corral: checkpoint {path} is not used: {fault}; trying the one before it"


def pass_over(run_dir: Path, path: Path, fault: str, ranks: Ranks) -> None:
    """Put the damaged checkpoint at ``path`` aside, on the terminal and in events.jsonl. Collective.

    It keeps its content under another name, because the run may store the same step again.
    """
    ranks.once(lambda: _put_aside(run_dir, path, fault))


def _put_aside(run_dir: Path, path: Path, fault: str) -> None:
    print(_passing(path, fault), flush=True)
    aside = path.with_name(f".corrupt-{path.name}-{time.time_ns()}")
    try:
        path.rename(aside)
    except OSError as error:
        raise StorageError(
            f"{path} is damaged ({fault}) and cannot be renamed to {aside.name}: {error.strerror}; move it elsewhere"
        ) from None
    event = {"time": round(time.time(), 3), "kind": "fallback", "step": int(path.name.removeprefix("step-"))}
    append(run_dir / "events.jsonl", {**event, "reason": fault, "path": str(aside)})
