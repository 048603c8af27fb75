"""Stand-ins for SLURM's clients, which record what the launcher says to them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

CLIENT = """#!{python}
import json, os, sys
name = os.path.basename(sys.argv[0])
with open({record!r}, "a") as file:
    file.write(json.dumps([name, sys.argv[1:], os.environ.get("CORRAL_NPROC")]) + "\\n")
if name == "sinfo":
    print({nodes!r})
elif "--test-only" in sys.argv and {refusal!r}:
    sys.exit("sbatch: error: " + {refusal!r})
elif "--parsable" in sys.argv:
    jobs = sum("--parsable" in line for line in open({record!r}))
    print(f"{{122 + jobs}};cluster")
"""

WHOLE = "gpu*|gpu:h100:8(S:0-1)|192|2063000"
"""A line of `sinfo --exact --noheader --format=%P|%G|%c|%m`: partition, devices, CPUs, memory in MiB."""


def stand_ins(folder: Path, monkeypatch: pytest.MonkeyPatch, *, nodes: str = WHOLE, refusal: str = "") -> Path:
    record = folder / "calls.jsonl"
    for name in ("sbatch", "sinfo"):
        path = folder / name
        path.write_text(CLIENT.format(python=sys.executable, record=str(record), nodes=nodes, refusal=refusal))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return record
