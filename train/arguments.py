"""``key=value`` arguments of the commands that work on a finished run or an exported model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from conf.errors import ConfigError, MissingInput


def run_arguments(argv: Sequence[str], known: Sequence[str], usage: str) -> dict[str, str]:
    """The arguments by key. Raises ConfigError for unknown ones, MissingInput if ``run_dir`` is asked for and is none.

    ``--help`` prints ``usage``, ``--cfg job`` the frozen config of the run (or the arguments, where there is no run);
    both leave with code 0.
    """
    if "--help" in argv or "-h" in argv:
        _print_and_leave(usage)
    wants_config = list(argv[-2:]) == ["--cfg", "job"] or list(argv[:2]) == ["--cfg", "job"]
    words = [each for each in argv if not (wants_config and each in ("--cfg", "job"))]
    found = dict(each.partition("=")[::2] for each in words)
    for key in found:
        if key not in known:
            raise ConfigError(f"{key}: unknown argument; this command takes {', '.join(known)}.\n{usage}")
    if "run_dir" in known and not Path(found.get("run_dir", "")).is_dir():
        raise MissingInput(f"run_dir={found.get('run_dir', '')}: no such folder; give the folder of a run.\n{usage}")
    if wants_config:
        frozen = Path(found.get("run_dir", "")) / "run.yaml"
        text = frozen.read_text() if frozen.is_file() else "".join(f"{key}: {value}\n" for key, value in found.items())
        _print_and_leave(text)
    return found


def whole_number(arguments: Mapping[str, str], key: str) -> int | None:
    """The value of ``key`` as a whole number >= 0, or None if it was not given. Raises ConfigError."""
    if key not in arguments:
        return None
    if not arguments[key].isdecimal():
        raise ConfigError(f"{key}={arguments[key]}: not a whole number of 0 or more")
    return int(arguments[key])


def _print_and_leave(text: str) -> None:
    print(text.rstrip("\n"), flush=True)
    sys.exit(0)
