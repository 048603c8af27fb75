"""Every reason that the code can reject a row for has a way out, and the ways out name settings that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from conf.compose import compose
from conf.foreign.reasons import LIMITS, REFUSES
from conf.judge import validate
from conf.schema import to_dict
from data_prep.advice.reasons import ADVICE, advice
from data_prep.filters import decontaminate
from data_prep.filters.clean import RULES

ROOT = Path(__file__).resolve().parents[3] / "data_prep"
NAMED = {"REASON": decontaminate.REASON, "REFUSES": REFUSES, "LIMITS": LIMITS}


def reasons() -> set[str]:
    """What stands first in ``Rejected(...)`` anywhere, and the rules of cleaning."""
    found = {rule.name for rule in RULES if rule.kind == "reject"}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Rejected":
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    found.add(str(first.value))
                elif ast.unparse(first) not in ("cleaned.rejected", "reason"):  # of Clean; of the rendering process
                    found.add(NAMED[ast.unparse(first)])
    return found


def test_the_code_is_walked() -> None:
    assert reasons() >= {
        "bad_utf8",
        "missing_field",
        "bad_tools",
        "over_length",
        "duplicate",
        "contaminated",
    }


@pytest.mark.parametrize("reason", sorted(reasons()))
def test_every_reason_has_a_way_out(reason: str) -> None:
    said = advice(reason, "mine")
    assert reason in ADVICE or f"+data.clean.{reason}=false" in said
    assert len(said.split()) > 1
    assert "{key}" not in said


def test_no_advice_is_for_a_reason_that_is_gone() -> None:
    assert sorted(set(ADVICE) - reasons()) == []


VALUES = {"encoding": "latin-1", "fields": "{a: b}", "format": "qa", "style.templates": "qa", "style.shots": "1",
          "style.prompt_tokens": "9", "style": "{shots: 0}", "select": "null",
          "data.seq_len": "64", "data.near_duplicates": "0.9", "data.decontaminate": "null",
          "data.chat_template": "chatml"}  # fmt: skip


@pytest.mark.parametrize("reason", sorted({*ADVICE, *(rule.name for rule in RULES)}))
def test_the_settings_of_a_way_out_exist(reason: str) -> None:
    for word in re.findall(r"\+?data\.[\w.]+(?:=[\w.-]+)?", advice(reason, "mine")):
        key, _, value = word.rstrip(".").partition("=")
        value = value or VALUES[key.removeprefix("data.sources.mine.")]
        key = f"+{key}" if key.startswith("data.sources.mine.style") else key
        base = ["~data.sources", "+data.sources={mine: {format: alpaca, path: x}}"]
        validate(to_dict(compose([*base, f"{key}={value}"])))
