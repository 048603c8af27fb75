"""``python -m tests.golden.write``: writes losses.json anew.

Only for a change that is meant to change the losses or the samples of a step: its message says which, and why.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.golden.runs import RUNS, record

LOSSES = Path(__file__).with_name("losses.json")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        recorded = {name: record(Path(folder), name) for name in RUNS}
    LOSSES.write_text(json.dumps(recorded, indent=1) + "\n")
    print(f"wrote {LOSSES}")


if __name__ == "__main__":
    main()
