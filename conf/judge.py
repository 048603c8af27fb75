"""Checks a plain dict against the schema and reports all of its problems together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from conf import walk
from conf.checks.finding import Finding
from conf.checks.rules import cross_checks
from conf.errors import ConfigError
from conf.problems import dotted, field_problems, without
from conf.schema import RunConfig


@cache
def _adapter() -> TypeAdapter[RunConfig]:
    return TypeAdapter(RunConfig)


def validate(raw: Mapping[str, Any]) -> RunConfig:
    """The config of a plain, resolved mapping. Raises ConfigError: one line per problem, setting first."""
    cfg, findings = judged(raw)
    if cfg is None:
        raise ConfigError([finding.line for finding in findings])
    return cfg


def judged(raw: Mapping[str, Any]) -> tuple[RunConfig | None, list[Finding]]:
    """The config of a plain, resolved mapping, or None and all of its problems. Raises ConfigError for no mapping."""
    plain = _with_rate(_with_objective(_with_mode(json.loads(_as_json(raw)))))
    try:
        cfg = _adapter().validate_json(_as_json(plain))
    except ValidationError as error:
        lines = field_problems([dict(each) for each in error.errors()], plain, RunConfig)
        wrong = [Finding((dotted(path),), line, field=True) for path, line in lines.items()]
        return None, [*wrong, *_checks_beside(plain, set(lines))]
    findings = cross_checks(cfg)
    return (None, findings) if findings else (cfg, [])


def _with_mode(plain: dict[str, Any]) -> dict[str, Any]:
    """``plain`` with ``resume: auto``, which was one word in earlier releases, as a section."""
    resume = plain.get("resume")
    return {**plain, "resume": {"mode": resume}} if isinstance(resume, str) else plain


def _with_objective(plain: dict[str, Any]) -> dict[str, Any]:
    """``plain`` with its section ``loss``, the former name of what ``objective`` holds, taken into that section.

    Older run.yaml files and users' own yaml hold it. Raises ConfigError where the two sections disagree.
    """
    loss, objective = plain.pop("loss", None), plain.get("objective", {"kind": "sft"})
    if not isinstance(loss, dict) or not isinstance(objective, dict):
        return plain if loss is None else {**plain, "loss": loss}
    former = {key: value for key, value in loss.items() if value != 0}
    twice = [key for key in former if key in objective and objective[key] != former[key]]
    if twice:
        raise ConfigError(
            [f"loss.{key}: objective.{key} is set too, to another value; keep objective.{key}" for key in twice]
        )
    return {**plain, "objective": {**objective, **former}}


def _with_rate(plain: dict[str, Any]) -> dict[str, Any]:
    """``plain`` with the learning rate of its tuning method where it names none; explicit wins."""
    optim, tuning = plain.get("optim"), plain.get("tuning")
    if not isinstance(optim, dict) or optim.get("lr", "auto") != "auto":
        return plain
    method = tuning.get("method") if isinstance(tuning, dict) else None
    known = walk.sections(walk.hints(RunConfig)["tuning"])
    facts = [each.FACTS for each in known if walk.tag_of(each, "method") == method]
    named = {key: value for key, value in optim.items() if key != "lr"}
    return {**plain, "optim": {**named, "lr": facts[0].lr} if facts else named}


def _as_json(raw: Mapping[str, Any]) -> str:
    # Strict dataclasses refuse nested dicts in validate_python; through JSON they are JSON's own types.
    try:
        return json.dumps(raw)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the config holds a value that JSON cannot hold: {error}; use text, numbers, lists"
        ) from None


def _checks_beside(plain: dict[str, Any], broken: set[tuple[str | int, ...]]) -> list[Finding]:
    """The cross checks of a config with broken fields: they see defaults there and report nothing about them."""
    try:
        cfg = _adapter().validate_json(_as_json(without(plain, broken)))
    except ValidationError:
        return []
    return [finding for finding in cross_checks(cfg) if not finding.touches(broken)]
