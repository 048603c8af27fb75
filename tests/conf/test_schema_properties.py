"""Any config at all is judged, never with a traceback; a mistyped key names the nearest one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf import walk
from conf.advice.names import key_for
from conf.advice.near import nearest
from conf.errors import ConfigError
from conf.judge import validate
from conf.schema import RunConfig, to_dict
from tests.conf.test_schema import RAW, changed

FULL = {**to_dict(validate(RAW)), "tuning": to_dict(validate(changed({"tuning": {"method": "lora"}})))["tuning"]}


def fields_below(node: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(node, dict):
        return []
    below = [(*path, key) for key in node] if path != ("data", "sources") else []
    return below + [deeper for key, value in node.items() for deeper in fields_below(value, (*path, key))]


PATHS = fields_below(FULL)
EDITS = st.tuples(st.sampled_from(["drop", "swap", "double", "replace"]), st.integers(0, 40), st.sampled_from("abxyz_"))


def mistyped(word: str, edit: tuple[str, int, str]) -> str:
    kind, where, letter = edit
    at = where % len(word)
    middle = {"drop": "", "swap": word[at : at + 2][::-1], "double": word[at] * 2, "replace": letter}[kind]
    return word[:at] + middle + word[at + (2 if kind == "swap" else 1) :]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PATHS), EDITS)
def test_a_mistyped_key_names_the_nearest(path: tuple[str, ...], edit: tuple[str, int, str]) -> None:
    *parents, key = path
    typo = mistyped(key, edit)
    raw = copy.deepcopy(FULL)
    node = raw
    for parent in parents:
        node = node[parent]
    siblings = list(node)
    if typo in siblings or not typo or key_for(typo):  # nnodes, r: names that other projects have for other keys
        return
    node[typo] = node.pop(key)
    with pytest.raises(ConfigError) as caught:
        validate(raw)
    (line,) = [each for each in caught.value.problems if each.startswith(f"{'.'.join((*parents, typo))}: unknown key")]
    others = [each for each in siblings if each != key and distance(each, typo) <= distance(key, typo)]
    suggested = line.split("did you mean ")[1].split("?")[0]
    assert len(key) <= 4 or suggested.split(".")[-1] in {key, *others}
    parent = walk.annotation_at(RunConfig, parents, FULL)
    assert f"keys here: {', '.join(walk.keys_at(parent, node))}" in line


def distance(a: str, b: str) -> int:
    """Edit distance."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        row, before = [i], row
        for j, two in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (one != two)))
    return row[-1]


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PATHS), JSON)
def test_any_value_anywhere_is_judged_without_a_traceback(path: tuple[str, ...], value: Any) -> None:
    raw = copy.deepcopy(FULL)
    node = raw
    for parent in path[:-1]:
        node = node[parent]
    node[path[-1]] = value
    try:
        lines = [] if validate(raw) else [""]
    except ConfigError as error:
        lines = error.problems
    assert all(": " in line and "\n" not in line for line in lines)


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_any_mapping_at_all_is_judged(raw: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(raw if isinstance(raw, dict) else {"model": raw})
    assert all(line.strip() for line in caught.value.problems)


def test_nearest_prefers_what_goes_on_longer() -> None:
    assert nearest("alpca", ["demo", "alpaca_llama3_8b_full"]) == "alpaca_llama3_8b_full"
    assert nearest("GPT2", ["gpt2", "pythia"]) == "gpt2"
    assert nearest("x", []) == ""
