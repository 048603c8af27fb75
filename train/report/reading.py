"""Reads the files of a run directory, also while the run works: a file may be missing or end inside a line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.compose import load_config, to_record
from conf.errors import CorralError
from conf.foreign.json_file import object_if_there, object_in
from conf.safety.secrets import redact
from conf.schema import RunConfig
from data_prep.corpus.identity import corpus_path
from data_prep.corpus.manifest_shape import problem

Points = list[tuple[float, float]]
MOST = 2**53
"""Steps and seconds since 1970 are below it."""


@dataclass(frozen=True)
class RunRecord:
    run_dir: Path
    config: dict[str, Any]
    """The resolved config without secrets; empty if run.yaml is missing or cannot be read."""
    metrics: list[dict[str, Any]]
    """One dict per step, ascending."""
    events: list[dict[str, Any]]
    samples: dict[int, list[dict[str, Any]]]
    """Answered held-out samples by step."""
    manifest: dict[str, Any]
    """MANIFEST of the prepared corpus; empty if the file is missing."""
    exit: dict[str, Any]
    provenance: dict[str, Any]
    checkpoints: list[str]

    @property
    def name(self) -> str:
        return str(self.config.get("name", self.run_dir.name))

    def series(self, metric: str) -> Points:
        """(step, value) for every step that logged ``metric`` as a finite number."""
        points = ((line["step"], line.get(metric)) for line in self.metrics)
        return [(float(step), float(value)) for step, value in points if value is not None and is_finite(value)]

    def names(self, beginning: str, ending: str = "") -> list[str]:
        """The texts between ``beginning`` and ``ending`` in metric names, in order of appearance."""
        names = {
            key[len(beginning) : len(key) - len(ending)]: None
            for line in self.metrics
            for key in line
            if key.startswith(beginning) and key.endswith(ending) and len(key) > len(beginning) + len(ending)
        }
        return list(names)


def read_run(run_dir: Path) -> RunRecord:
    cfg = read_config(run_dir / "run.yaml")
    return RunRecord(
        run_dir=run_dir,
        config=to_record(cfg) if cfg else {},
        metrics=by_step(json_lines(run_dir / "metrics.jsonl")),
        events=redact(json_lines(run_dir / "events.jsonl")),
        samples={
            int(path.stem.removeprefix("step-")): json_lines(path)
            for path in sorted((run_dir / "samples").glob("step-*.jsonl"))
            if path.stem.removeprefix("step-").isdecimal()
        },
        manifest=manifest_of(cfg) if cfg else {},
        exit=redact(object_if_there(run_dir / "exit.json")),
        provenance=redact(read_provenance(run_dir)),
        checkpoints=sorted(path.name for path in (run_dir / "checkpoints").glob("step-*")),
    )


def read_config(path: Path) -> RunConfig | None:
    """The run's config; None if it cannot be read, because a report shows whatever it can read."""
    if not path.is_file():
        return None
    try:
        return load_config(path)
    except CorralError:
        return None


def read_provenance(run_dir: Path) -> dict[str, Any]:
    """The launcher's newest record (commit, host, versions); without a record, that of the newest checkpoint."""
    launches = json_lines(run_dir / "logs" / "launches.jsonl")
    if launches:
        return {**launches[-1], "launches": len(launches)}
    for folder in sorted((run_dir / "checkpoints").glob("step-*"), reverse=True):
        manifest = object_if_there(folder / "MANIFEST.json")
        if manifest:
            return {key: manifest[key] for key in ("world", "zero_stage", "base_hash", "versions") if key in manifest}
    return {}


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, without a line that is still being written or was damaged.

    Of an object, values that are not of their key's kind are left out.
    """
    if not path.is_file():
        return []
    return [content for line in path.read_bytes().splitlines() if (content := sound(object_in(line)))]


def sound(line: dict[str, Any]) -> dict[str, Any]:
    """``line`` without the known keys whose value nobody could use."""
    return {key: value for key, value in line.items() if key not in KINDS or KINDS[key](value)}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MOST


KINDS: dict[str, Callable[[object], bool]] = {
    "step": _is_count,
    "world": lambda value: _is_count(value) and value != 0,
    "time": _is_number,
    "rouge_l": _is_number,
}


def manifest_of(cfg: RunConfig) -> dict[str, Any]:
    """The MANIFEST of the run's corpus; empty if it is not there or is none."""
    found = object_if_there(corpus_path(cfg) / "MANIFEST.json")
    return {} if problem(found) else found


def is_finite(value: object) -> bool:
    """Whether ``value`` is a number that can be drawn."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def by_step(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines in ascending order of step; lines of the same step are joined."""
    steps: dict[int, dict[str, Any]] = {}
    for line in lines:
        if isinstance(line.get("step"), int):
            steps.setdefault(line["step"], {}).update(line)
    return [steps[step] for step in sorted(steps)]


def flat(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys; empty mappings and lists remain values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        here = f"{path}.{key}" if path else str(key)
        found |= flat(value, here) if isinstance(value, Mapping) and value else {here: value}
    return found
