"""Template sets: how one task is asked in several ways. Data files, one template per line.

    {"input": "Question: {question}\\nAnswer:", "target": "{answer}", "head": "", "separator": "", "shots": "any"}

``input`` and ``target`` are patterns with places in braces, filled from the row; ``head`` stands once in front, before
the exemplars; ``separator`` stands between two of them (left out: drawn); ``shots`` says for what a template is meant:
zero, few or any (the default). The shipped sets are in data_prep/template_sets; ``data_prep.flan_templates`` makes
files like these of FLAN's published ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from conf.errors import BadData
from data_prep.rows.conversation import Rejected
from data_prep.rows.shipped import shipped_or_own

FOLDER = Path(__file__).resolve().parents[1] / "template_sets"
MOST = 64
"""Templates in one set: the column ``variant`` counts forms of the options in steps of so many."""
PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    input: str
    target: str
    head: str = ""
    separator: str = ""
    shots: Literal["zero", "few", "any"] = "any"


AS_GIVEN = Template("{question}", "{answer}")
"""The template of a source without a set: the record is a finished prompt, as in P3."""


def fill(pattern: str, parts: Mapping[str, str]) -> str:
    """``pattern`` with its places filled; raises Rejected for a place that the record has no text for."""

    def part(match: re.Match[str]) -> str:
        if match[1] not in parts:
            raise Rejected(
                "missing_template_field", f"the template asks for {match[0]}; the row has {', '.join(parts)}"
            )
        return parts[match[1]]

    return PLACE.sub(part, pattern)  # not str.format: braces in the data are data


def locate(name: str, key: str) -> Path:
    """The file of a shipped set (a plain name) or the user's own (a path). Raises MissingInput naming ``key``."""
    return shipped_or_own(FOLDER, ".jsonl", name, key)


def load(path: Path, shots: Literal["zero", "few"]) -> tuple[Template, ...]:
    """The templates of a file that are meant for ``shots``, in order. Raises BadData naming the line."""
    templates = [_template(path, number, line) for number, line in _lines(path)]
    fitting = tuple(each for each in templates if each.shots in (shots, "any"))
    if not fitting:
        raise BadData(f"{path} holds no template for {shots}-shot samples; write a line with shots: {shots}.")
    if len(fitting) > MOST:
        raise BadData(f"{path} holds {len(fitting)} templates for {shots}-shot samples, more than {MOST}; split it.")
    return fitting


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8 text ({error}); save the file as UTF-8.") from error
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _template(path: Path, number: int, line: str) -> Template:
    try:
        content: Any = json.loads(line)
        if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
            raise TypeError("it is not an object of texts")
        template = Template(**content)
    except (ValueError, TypeError) as error:
        known = ", ".join(each.name for each in fields(Template))
        raise BadData(f"{path}, line {number}: not a template ({error}); its keys are {known}.") from error
    if template.shots not in ("zero", "few", "any"):
        raise BadData(f"{path}, line {number}: shots is {template.shots!r}; allowed: zero, few, any.")
    if not PLACE.search(template.target):  # an input may have none: "Write a dialogue."
        raise BadData(f"{path}, line {number}: target has no place in braces, so every answer would be the same.")
    return template
