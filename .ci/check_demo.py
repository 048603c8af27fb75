"""Looks at what ``make demo`` left in a clone: exit records, metrics, reports, exports and the figures it promises."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(root: Path) -> None:
    for name, sources in (("demo", ["words"]), ("demo_lora", ["new_family", "words"])):
        run = root / "outputs" / name
        assert json.loads((run / "exit.json").read_text())["code"] == 0, f"{run}/exit.json"
        for left in ("run.yaml", "ledger.jsonl", "report.html", "export/config.json", "export/model.safetensors"):
            assert (run / left).stat().st_size > 0, run / left
        evaluations = [line for line in lines(run / "metrics.jsonl") if "eval/loss" in line]
        first, last = evaluations[0], evaluations[-1]
        assert last["eval/loss"] < 0.1 < first["eval/loss"], (first, last)
        for source in sources:
            key = f"eval/{source}/exact_match"
            print(f"{name}: {key} {first[key]:.3f} -> {last[key]:.3f}")
            assert last[key] >= 0.9, key
        assert first[f"eval/{sources[0]}/exact_match"] <= 0.05, first
        answered = [row for row in lines(max((run / "samples").glob("*.jsonl"))) if row["source"] == sources[0]]
        assert len(answered) >= (200 if name == "demo" else 100), len(answered)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
