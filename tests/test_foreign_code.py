"""Files of others are loaded in few places, and each call there says whether code of theirs may run.

transformers asks on standard input where nothing is said. A call by another name would not be seen here, so the modules
that may hold such a call are named, and nobody else may say these words.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("conf", "data_prep", "train", "launch")
LOADING = {
    "data_prep/tokenizer/folder.py": "tokenizers",
    "train/loading/pretrained.py": "configs and models",
    "train/loading/adapters.py": "PEFT's adapters, which have no code but a module's name, refused there",
}
CALLS = {
    "from_pretrained", "from_config", "for_model", "get_class_from_dynamic_module", "load_custom_generate",
    "import_module", "unpickle",
}  # fmt: skip
SAY = ("from_pretrained", "from_config")
OF_OURS = {
    "train/tuning/__init__.py": "import_module of a method's own file",
    "train/families/__init__.py": "import_module of a family's own file",
    "data_prep/sources/__init__.py": "import_module of a format's own file",
    "train/attention/__init__.py": "import_module of a backend's own file",
    "train/objectives/__init__.py": "import_module of an objective's own file",
}
"""Modules that import parts of Corral by names that the schema has checked."""


def calls(source: str) -> Iterator[tuple[int, str, set[str]]]:
    """Line, name and keywords of every call by one of the words."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in CALLS:
                yield node.lineno, name, {each.arg or "**" for each in node.keywords}


def wrong(name: str, source: str) -> Iterator[str]:
    for line, call, keywords in calls(source):
        where = f"{name}:{line}: {call}"
        if call == "import_module" and name in OF_OURS:
            continue
        if name not in LOADING:
            yield f"{where} stands outside of the modules that load: {', '.join(LOADING)}"
        elif call in SAY and "trust_remote_code" not in keywords and name != "train/loading/adapters.py":
            yield f"{where} does not say trust_remote_code"


def test_no_load_is_silent_about_code() -> None:
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    found = [
        line for path in files for line in wrong(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", [*LOADING, *OF_OURS])
def test_every_exception_is_needed(name: str) -> None:
    assert list(calls((ROOT / name).read_text(encoding="utf-8"))), f"{name} loads nothing: take it out of the list"


@pytest.mark.parametrize(
    ("name", "call", "seen"),
    [
        ("train/x.py", "AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)", True),
        ("train/loading/pretrained.py", "AutoConfig.from_pretrained(folder)", True),
        ("train/loading/pretrained.py", "AutoConfig.from_pretrained(folder, **options)", True),
        ("train/loading/pretrained.py", "AutoConfig.from_pretrained(folder, trust_remote_code=False)", False),
        ("train/x.py", "importlib.import_module(name)", True),
        ("train/tuning/__init__.py", "import_module(name)", False),
    ],
)
def test_a_planted_call_is_seen(name: str, call: str, seen: bool) -> None:
    assert bool(list(wrong(name, call))) is seen
