"""Every kind of damage to every file of a checkpoint, and what a run then continues from."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Literal

from tests.train.checkpoint.sealing import flipped
from train.checkpoint.check import latest_good
from train.checkpoint.layout import MANIFEST, SEAL, folder_of

FLIPS = {MANIFEST: 2400, SEAL: 600}
"""Single bits, in other files ``FLIPS_ELSEWHERE``."""
FLIPS_ELSEWHERE = 200
LENGTHS = 24
"""To which a file is cut."""
Kind = Literal["bit flipped", "cut", "grown", "zeroed", "deleted", "not a file", "swapped", "of another step"]


@dataclass
class Found:
    """Of a sweep: how often each kind of damage was tried, and what went unseen."""

    tried: Counter[tuple[str, Kind]] = field(default_factory=Counter)
    """By file and kind."""
    accepted: list[tuple[str, Kind, str]] = field(default_factory=list)
    """Damages with which the damaged checkpoint was taken, or the one before was taken without its name."""


def contents(content: bytes, flips: int, random: Random) -> Iterator[tuple[Kind, bytes]]:
    """What may be in place of ``content``."""
    bits = 8 * len(content)
    for bit in random.sample(range(bits), min(bits, flips)):
        yield "bit flipped", flipped(content, bit)
    for length in {0, 1, len(content) - 1, *random.sample(range(len(content)), min(LENGTHS, len(content)))}:
        yield "cut", content[:length]
    yield "grown", content + b"\n"
    yield "grown", content + content
    yield "zeroed", bytes(len(content))
    yield "zeroed", content[: len(content) // 2] + bytes(len(content) - len(content) // 2)


def sweep(run_dir: Path, seed: int) -> Found:
    """Damage the checkpoint of step 2 in every way. The run continues from step 1 then, and names the fault."""
    random, found = Random(seed), Found()
    path, before = folder_of(run_dir, 2), folder_of(run_dir, 1)
    files = sorted(path.iterdir())
    whole = {file: file.read_bytes() for file in files}
    for file, content in whole.items():
        for kind, changed in contents(content, FLIPS.get(file.name, FLIPS_ELSEWHERE), random):
            file.write_bytes(changed)
            judge(run_dir, found, file.name, kind, f"{len(changed)} bytes")
        file.unlink()
        judge(run_dir, found, file.name, "deleted", "")
        file.mkdir()
        judge(run_dir, found, file.name, "not a file", "a folder")
        file.rmdir()
        file.symlink_to("nowhere")
        judge(run_dir, found, file.name, "not a file", "a link to nothing")
        file.unlink()
        file.write_bytes((before / file.name).read_bytes())
        if file.read_bytes() != content:  # random states may be the same
            judge(run_dir, found, file.name, "of another step", "")
        file.write_bytes(content)
    for one, other in combinations(files, 2):
        if whole[one] != whole[other]:
            one.write_bytes(whole[other])
            other.write_bytes(whole[one])
            judge(run_dir, found, f"{one.name} and {other.name}", "swapped", "")
            one.write_bytes(whole[one])
            other.write_bytes(whole[other])
    for together in ([MANIFEST, SEAL], [file.name for file in files]):
        for name in together:
            shutil.copy(before / name, path / name)
        judge(run_dir, found, " and ".join(together), "of another step", "")
        for file in files:
            file.write_bytes(whole[file])
    return found


def judge(run_dir: Path, found: Found, name: str, kind: Kind, what: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        step = latest_good(run_dir).step
    found.tried[name, kind] += 1
    fault = said.getvalue()
    # A damaged MANIFEST or seal is found by the seal itself, and not by what the wrong MANIFEST says of other files.
    named = "MANIFEST" in fault if name in (MANIFEST, SEAL) else "step-00000002 is not used" in fault
    if step != 1 or not named:
        found.accepted.append((name, kind, f"{what}: step {step}, {fault!r}"))


def told(found: Found) -> str:
    """A table: files by kind of damage."""
    kinds = [*dict.fromkeys(kind for _, kind in found.tried)]
    names = [*dict.fromkeys(label(name) for name, _ in found.tried)]
    counts: Counter[tuple[str, str]] = Counter()
    for (name, kind), count in found.tried.items():
        counts[label(name), kind] += count
    rows = [["damaged", *kinds], ["---"] * (1 + len(kinds))]
    rows += [[name, *(str(counts[name, kind] or "") for kind in kinds)] for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def label(name: str) -> str:
    """The row of a file's damages."""
    if " and " in name:
        return "several files"
    return name if name in (MANIFEST, SEAL) else f"{name.split('-')[0]}-*.safetensors"
