"""The list of the longest tests names tests that there are, and slow ones."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.conftest import EXTENDED

ROOT = Path(__file__).parents[1]


def marks_of(path: Path, name: str) -> str:
    """The decorators of a test function and the marks of its module, as text."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    whole = [ast.unparse(each.value) for each in module.body if isinstance(each, ast.Assign)]
    (found,) = (each for each in module.body if isinstance(each, ast.FunctionDef) and each.name == name)
    return " ".join([*whole, *(ast.unparse(each) for each in found.decorator_list)])


def test_every_line_names_a_slow_test() -> None:
    head, *lines = EXTENDED.read_text(encoding="utf-8").splitlines()
    assert head.startswith("# ")
    assert lines == sorted({*lines})
    for line in lines:
        path, _, name = line.partition("::")
        assert "mark.slow" in marks_of(ROOT / path, name), line
