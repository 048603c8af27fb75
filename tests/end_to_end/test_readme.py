"""The README is true: its commands exist and compose, and its tree names every room and none that is not there."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.commands import ROOT, call

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, flags=re.M | re.S)
COMPOSING = ("data_prep", "data_prep.preview", "launch", "train", "train.verify")


def commands() -> list[list[str]]:
    """Words of every command a reader is told to type, without comments; ``a && b`` is two."""
    typed = [
        line for block in BLOCKS for line in block.splitlines() if re.match(r"(\$ )?(python|torchrun|sbatch) ", line)
    ]
    parts = [part for line in typed for part in line.removeprefix("$ ").split("&&")]
    return [shlex.split(part, comments=True) for part in parts]


def module_of(words: list[str]) -> tuple[str, list[str]]:
    """(module, its arguments) of a command; sbatch's script composes the same config as the run."""
    if words[0] == "sbatch":
        script = next(word for word in words if word.endswith(".sh"))
        assert (ROOT / script).is_file()
        return "train", words[words.index(script) + 1 :]
    at = words.index("-m")
    return words[at + 1], words[at + 2 :]


COMPOSED = sorted(
    {(module, *rest) for module, rest in map(module_of, commands()) if module in COMPOSING and rest[0] != "status"}
)


def test_there_is_something_to_check() -> None:
    assert len(COMPOSED) >= 8
    assert {"train.export", "train.chat"} <= {module_of(words)[0] for words in commands()}


@pytest.mark.parametrize("command", COMPOSED, ids=" ".join)
def test_commands_compose(command: tuple[str, ...]) -> None:
    module, *arguments = command
    if arguments[:1] == ["plan"]:
        module, arguments = "launch", ["plan", *arguments[1:]]
    code, output = call(module, *arguments, "--cfg", "job", timeout=60)
    assert code == 0, output
    assert "seq_len:" in output


@pytest.mark.parametrize("module", ["evaluate", "export", "chat", "report", "fingerprint"])
def test_the_other_commands_say_how_to_use_them(module: str) -> None:
    assert f"python -m train.{module}" in README
    code, output = call(f"train.{module}", "--help", timeout=60)
    assert code == 0
    assert "usage:" in output


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+)(?: [.a-z]+)*:", (ROOT / "Makefile").read_text(), flags=re.M))
    named = set(re.findall(r"`make ([a-z-]+)", README)) | set(re.findall(r"^make ([a-z-]+)", README, flags=re.M))
    assert {"demo", "test"} <= named <= targets, named - targets


def test_the_tree_names_every_room_and_no_other() -> None:
    tree = next(block for block in BLOCKS if block.startswith("slurm/"))
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [Path(line) for line in listed.splitlines()]
    floors = ("conf", "data_prep", "train", "launch")
    rooms = {path.parent for path in files if path.suffix == ".py" and path.parts[0] in floors}
    named = set(re.findall(r"\b([a-z_]+)/(?=\s|$)", tree))
    missing = sorted(str(room) for room in rooms if room.name not in named)
    assert not missing, f"README's tree does not name {missing}"
    folders = {part for path in files for part in path.parts[:-1]}
    assert not named - folders, f"README's tree names {named - folders}, which are no folders"


def test_the_version_has_its_release_page() -> None:
    version = re.search(r'version="([0-9.]+)"', (ROOT / "setup.py").read_text())
    assert version
    pages = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert pages[0][0] == "Unreleased"
    assert pages[1][0] == version[1]
    assert re.fullmatch(r" - \d{4}-\d\d-\d\d", pages[1][1]), "a release page has its date"
