"""The sizes that keep the code readable: of a file, a function, its parameters, a room and a floor.

A message says file, line, number and limit. Where a limit cannot hold, the exception stands here by name with a reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("conf", "data_prep", "train", "launch")
FOLDERS = (*FLOORS, "benchmarks", "tests")

FILE_LINES = 320
FUNCTION_LINES = 60
PARAMETERS = 7
ROOM_FILES = 15
FLOOR_FILES = {"data_prep": 10, "train": 10}
"""Python files outside of the rooms of a floor: the few that are the story itself."""

COLLECTIONS = {
    "train/families": "one file per model family",
    "data_prep/sources": "one file per source format",
    "benchmarks": "one command per file",
}
"""Rooms of any size, because their files are alike and nobody reads more than one. So are the rooms of ``tests``."""

FOREIGN = {
    "train/attention/packed.py packed_attention": "transformers' AttentionInterface passes these",
    "train/attention/packed.py _varlen_cuda": "the parameters of torch's varlen_attn",
    "train/attention/varlen_cpu.py varlen_attention_cpu": "the parameters of torch's varlen_attn",
    "tests/adding/parts/attention.py attention": "transformers' AttentionInterface passes these",
    "tests/train/attention/test_varlen.py by_itself": "stands in for torch's varlen_attn",
    "tests/train/attention/test_varlen.py not_at_all": "stands in for torch's varlen_attn",
}
"""Functions whose parameters are another library's."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(source: str) -> list[Function]:
    """Every function and method, nested ones too."""
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]


def lines_of(function: Function) -> int:
    """From ``def`` to the last line of the body; decorators do not count, because a table of test cases is data."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def parameters_of(function: Function) -> int:
    """Without the object itself: ``self``, ``cls``, and ``ctx`` of an autograd function."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return sum(parameter is not None and parameter.arg not in ("self", "cls", "ctx") for parameter in named)


def in_file(name: str, source: str) -> Iterator[str]:
    """What is too large in one file."""
    lines = len(source.splitlines())
    if lines > FILE_LINES:
        yield f"{name}:{lines}: the file has {lines} lines, {FILE_LINES} at most"
    for function in functions(source):
        where, key = f"{name}:{function.lineno}: {function.name}", f"{name} {function.name}"
        if (lines := lines_of(function)) > FUNCTION_LINES:
            yield f"{where} has {lines} lines, {FUNCTION_LINES} at most"
        count = parameters_of(function)
        if count > PARAMETERS and key not in FOREIGN:
            yield f"{where} has {count} parameters, {PARAMETERS} at most"


def in_folder(name: str, files: list[Path]) -> Iterator[str]:
    """What is wrong with one folder of Python files."""
    if len(files) > ROOM_FILES and name not in COLLECTIONS and not name.startswith("tests"):
        yield f"{name}/: the room has {len(files)} files, {ROOM_FILES} at most"
    if len(files) > FLOOR_FILES.get(name, len(files)):
        yield f"{name}/: {len(files)} files lie outside of its rooms, {FLOOR_FILES[name]} at most"
    inits = [path for path in files if path.name == "__init__.py"]
    if not inits:
        yield f"{name}/: the room has no __init__.py"
    elif not name.startswith("tests") and not purpose(inits[0].read_text()):
        yield f"{name}/__init__.py:1: the room does not say its purpose in the first line of its docstring"


def purpose(source: str) -> str:
    """The docstring's first line, if it is a sentence of its own; else nothing."""
    first, *rest = (ast.get_docstring(ast.parse(source)) or "").splitlines() or [""]
    return first if first.endswith(".") and not (rest and rest[0].strip()) else ""


def over_budget(root: Path) -> list[str]:
    """What is over budget in the folders of the house below ``root``."""
    rooms: dict[Path, list[Path]] = {}
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        rooms.setdefault(path.parent, []).append(path)
    files = [path for room in rooms.values() for path in room]
    found = [line for path in files for line in in_file(path.relative_to(root).as_posix(), path.read_text())]
    return found + [
        line for room, paths in rooms.items() for line in in_folder(room.relative_to(root).as_posix(), paths)
    ]


def test_the_house_keeps_its_budgets() -> None:
    found = over_budget(ROOT)
    assert not found, "over budget; divide by subject, or group parameters that belong together:\n" + "\n".join(found)


@pytest.mark.parametrize("key", [*FOREIGN])
def test_exceptions_name_functions_that_need_them(key: str) -> None:
    """An entry that nothing needs any more has to go."""
    name, function = key.split(" ")
    counts = [parameters_of(node) for node in functions((ROOT / name).read_text()) if node.name == function]
    assert counts, f"{name} has no {function}: take it out of the list"
    assert max(counts) > PARAMETERS, f"{key} has {max(counts)} parameters: take it out of the list"


SAMPLE = '''\
@decorated(
    1,
)
def outer(a, /, b, *rest, c=1, **more):
    """Says something."""

    def inner():
        return a
    return inner

class Kind:
    @classmethod
    def made(cls, x): return cls()
    async def method(self, x, y):
        return x
    @staticmethod
    def forward(ctx, x): return x
'''


def test_functions_are_counted_as_they_stand() -> None:
    counted = {node.name: (node.lineno, lines_of(node), parameters_of(node)) for node in functions(SAMPLE)}
    assert counted == {
        "outer": (4, 6, 5),
        "inner": (7, 2, 0),
        "made": (13, 1, 1),
        "method": (14, 2, 2),
        "forward": (17, 1, 1),
    }


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('"""One purpose."""', "One purpose."),
        ('"""One purpose.\n\nMore of it."""', "One purpose."),
        ('"""No sentence"""', ""),
        ('"""A sentence. Over\ntwo lines."""', ""),
        ("x = 1", ""),
    ],
)
def test_a_purpose_is_one_line(source: str, said: str) -> None:
    assert purpose(source) == said


def test_a_planted_violation_of_every_budget_is_seen(tmp_path: Path) -> None:
    def plant(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    plant("conf/__init__.py", '"""Kept."""\n')
    plant("conf/at_the_limit.py", "x = 1\n" * FILE_LINES)
    plant("conf/long.py", "x = 1\n" * (FILE_LINES + 1))
    plant("launch/__init__.py", "")
    plant("launch/deep.py", "x = 1\n\ndef deep():\n" + "    x = 1\n" * FUNCTION_LINES)
    plant("launch/wide.py", "def wide(a, b, c, d, e, f, g, h): ...\ndef just(a, b, c, d, e, f, g): ...\n")
    for number in range(11):
        plant(f"train/file{number}.py", "")
    for number in range(16):
        plant(f"data_prep/room/file{number}.py", "")
    for collection in ("train/families", "tests"):
        plant(f"{collection}/__init__.py", '"""Alike."""\n')
        for number in range(16):
            plant(f"{collection}/file{number}.py", "")
    assert sorted(over_budget(tmp_path)) == [
        "conf/long.py:321: the file has 321 lines, 320 at most",
        "data_prep/room/: the room has 16 files, 15 at most",
        "data_prep/room/: the room has no __init__.py",
        "launch/__init__.py:1: the room does not say its purpose in the first line of its docstring",
        "launch/deep.py:3: deep has 61 lines, 60 at most",
        "launch/wide.py:1: wide has 8 parameters, 7 at most",
        "train/: 11 files lie outside of its rooms, 10 at most",
        "train/: the room has no __init__.py",
    ]
