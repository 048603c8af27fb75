"""What must be done in one way is done in one place: texts made safe, folders and files made, secrets hidden.

Who needs one of these elsewhere imports it from conf/safety or conf/durable, or stands here with a reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("conf", "data_prep", "train", "launch")

FRESH = "into a folder that was just made, under a name that nobody knows"
ALLOWED = {
    "html.escape": {"conf/safety/texts.py": "the place"},
    "rich.console.Console": {"conf/safety/console.py": "the place"},
    "tempfile.gettempdir": {"conf/disk/folders.py": "the place"},
    "writes": {
        "data_prep/demo/make.py": "the maintainers' own command for a shipped file",
        "data_prep/filters/decontaminate.py": FRESH,
        "launch/terminal.py": "/dev/null",
        "train/checkpoint/commit.py": FRESH,
        "train/checkpoint/files.py": FRESH,
        "train/copies/home.py": FRESH,
        "train/export/folder.py": FRESH,
        "train/model/weights.py": FRESH,
        "train/tuning/bottleneck.py": FRESH,
        "train/verify/proof.py": FRESH,
    },
}
"""What -> the files that may, and why."""


def imported(tree: ast.AST) -> dict[str, str]:
    """Local name -> what it is, for names that imports make."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {each.asname or each.name: each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    return names


def uses(source: str) -> Iterator[tuple[int, str]]:
    """(line, what) of everything in ``source`` that has one place."""
    tree = ast.parse(source)
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            text = ast.unparse(node)
            first, _, rest = text.partition(".")
            full = f"{names[first]}.{rest}".rstrip(".") if first in names else text
            if full in ALLOWED:
                yield node.lineno, full
        if isinstance(node, ast.Call) and writes(node):
            yield node.lineno, "writes"


def writes(call: ast.Call) -> bool:
    """Whether a call opens a path for writing by its name, following links."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if name in ("write_text", "write_bytes", "touch"):
        return True
    if name != "open" or owner in ("os", "self._files", "os.path"):
        return False
    given = [*call.args, *(each.value for each in call.keywords if each.arg == "mode")]
    modes = [each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return any({*mode} & {*"wax+"} and len(mode) <= 4 for mode in modes)


def test_everything_has_its_place() -> None:
    found = {
        (what, path.relative_to(ROOT).as_posix()): line
        for floor in FLOORS
        for path in sorted((ROOT / floor).rglob("*.py"))
        for line, what in uses(path.read_text())
    }
    wrong = [f"{file}:{line}: {what}" for (what, file), line in found.items() if file not in ALLOWED[what]]
    assert not wrong, "done in another place than the one that is safe:\n" + "\n".join(wrong)
    stale = [(what, file) for what, files in ALLOWED.items() for file in files if (what, file) not in found]
    assert not stale, "entries that nothing needs any more"


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("from html import escape\nescape(x)", "html.escape"),
        ("import html\nhtml.escape(x)", "html.escape"),
        ("from rich.console import Console as C\nC()", "rich.console.Console"),
        ("import tempfile as t\nt.gettempdir()", "tempfile.gettempdir"),
        ("p.open('w')", "writes"),
        ("open(p, mode='ab')", "writes"),
        ("p.write_text('')", "writes"),
        ("p.touch()", "writes"),
        ("p.open()", ""),
        ("p.open('rb')", ""),
        ("opened(p, 'xb')", ""),
    ],
)
def test_a_planted_use_is_seen(source: str, what: str) -> None:
    assert {found for _, found in uses(source)} == ({what} if what else set())
