"""What a run directory says about its run, as far as it has got: every file may be missing or end inside a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.compose import load
from conf.errors import CorralError
from conf.schema import RunConfig, to_dict
from data_prep.identity import corpus_path
from train.redact import redact

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class RunRecord:
    run_dir: Path
    config: dict[str, Any]
    """The resolved config without secrets; empty if run.yaml is missing or cannot be read."""
    metrics: list[dict[str, Any]]
    """One dict per step, ascending."""
    events: list[dict[str, Any]]
    samples: dict[int, list[dict[str, Any]]]
    """Answered held-out rows by step."""
    manifest: dict[str, Any]
    """MANIFEST of the prepared corpus; empty if it is not there."""
    exit: dict[str, Any]
    provenance: dict[str, Any]
    checkpoints: list[str]

    @property
    def name(self) -> str:
        return str(self.config.get("name", self.run_dir.name))

    def series(self, metric: str) -> Points:
        """(step, value) wherever ``metric`` was logged as a finite number."""
        found = ((line["step"], line.get(metric)) for line in self.metrics)
        return [(float(step), float(value)) for step, value in found if isinstance(value, int | float)]

    def names(self, beginning: str, ending: str = "") -> list[str]:
        """What stands between ``beginning`` and ``ending`` in metric names, in order of appearance."""
        found = {
            key[len(beginning) : len(key) - len(ending)]: None
            for line in self.metrics
            for key in line
            if key.startswith(beginning) and key.endswith(ending) and len(key) > len(beginning) + len(ending)
        }
        return list(found)


def read_run(run_dir: Path) -> RunRecord:
    cfg = read_config(run_dir / "run.yaml")
    return RunRecord(
        run_dir=run_dir,
        config=redact(to_dict(cfg)) if cfg else {},
        metrics=by_step(json_lines(run_dir / "metrics.jsonl")),
        events=redact(json_lines(run_dir / "events.jsonl")),
        samples={
            int(path.stem.removeprefix("step-")): json_lines(path)
            for path in sorted((run_dir / "samples").glob("step-*.jsonl"))
        },
        manifest=json_object(corpus_path(cfg) / "MANIFEST.json") if cfg else {},
        exit=redact(json_object(run_dir / "exit.json")),
        provenance=redact(read_provenance(run_dir)),
        checkpoints=sorted(path.name for path in (run_dir / "checkpoints").glob("step-*")),
    )


def read_config(path: Path) -> RunConfig | None:
    """The run's config, or None where there is none: a report shows what it can."""
    if not path.is_file():
        return None
    try:
        return load(path)
    except CorralError:
        return None


def read_provenance(run_dir: Path) -> dict[str, Any]:
    """The launcher's newest record (commit, host, versions); without one, what the newest checkpoint says."""
    launches = json_lines(run_dir / "logs" / "launches.jsonl")
    if launches:
        return {**launches[-1], "launches": len(launches)}
    for folder in sorted((run_dir / "checkpoints").glob("step-*"), reverse=True):
        manifest = json_object(folder / "MANIFEST.json")
        if manifest:
            return {key: manifest[key] for key in ("world", "zero_stage", "base_hash", "versions") if key in manifest}
    return {}


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole objects of a JSON-lines file; a line that is still being written is left out."""
    if not path.is_file():
        return []
    return [content for line in path.read_bytes().splitlines() if (content := parsed(line))]


def json_object(path: Path) -> dict[str, Any]:
    return parsed(path.read_bytes()) if path.is_file() else {}


def parsed(content: bytes) -> dict[str, Any]:
    """A JSON object, or an empty dict if it is none."""
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def by_step(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of the same step joined, ascending."""
    steps: dict[int, dict[str, Any]] = {}
    for line in lines:
        if isinstance(line.get("step"), int):
            steps.setdefault(line["step"], {}).update(line)
    return [steps[step] for step in sorted(steps)]


def flat(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; empty mappings and lists stay values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        here = f"{path}.{key}" if path else str(key)
        found |= flat(value, here) if isinstance(value, Mapping) and value else {here: value}
    return found
