"""One exception class per kind of user mistake, each with its exit code.

Every message is one sentence or a short list. It says what is wrong, where (file, line, key), why, and what to do.
``leave_with_code`` turns the exception into that sentence on stderr and the exit code, so a user never reads a
traceback for a mistake of their own. A traceback therefore always means a defect of Corral.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from conf.safety.arguments import spelt_out
from conf.safety.secrets import learn_from
from conf.safety.streams import guarded
from conf.safety.texts import for_terminal


class CorralError(Exception):
    """A failure that has a name and an exit code. Subclasses set ``code``; ``str(error)`` is what the user reads."""

    code = 70


class BadData(CorralError):
    """The content of rows or files is wrong: too many bad rows, another hash, or changed while it was read."""

    code = 65


class MissingInput(CorralError):
    """The user named a file, folder, corpus or model that does not exist."""

    code = 66


class Unavailable(CorralError):
    """This run needs a service or an optional package that is not available."""

    code = 69


class InternalError(CorralError):
    """Non-finite numbers that the run cannot recover from, or a state that should be impossible."""

    code = 70


class OutOfMemory(CorralError):
    """The memory of the device or host is too small. The run is never retried at the same size."""

    code = 71


class CannotCreate(CorralError):
    """The output cannot be created, or another process holds its lock."""

    code = 73


class HeldByAnother(CannotCreate):
    """Another process works in the output folder."""


class StorageError(CorralError):
    """A read or write failed, the disk is full, or no checkpoint verifies."""

    code = 74


class Requeue(CorralError):
    """Not a failure: a checkpoint is on disk and the run wants to be started again."""

    code = 75


class DistributedFailure(CorralError):
    """A rank died or hung, or a collective timed out."""

    code = 76


class DeviceFailure(DistributedFailure):
    """A device or node failed by itself: it is no lost peer, and its peers lose it."""


class PermissionDenied(CorralError):
    """The user has no permission to read or write a named file or folder."""

    code = 77


class ConfigError(CorralError):
    """The config is wrong. ``problems`` has one line per problem; each line begins with the setting."""

    code = 78

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def describe(error: CorralError) -> str:
    """The text a user reads for ``error``: one line, or a counted list for several config problems."""
    if isinstance(error, ConfigError) and len(error.problems) > 1:
        lines = "\n".join(f"  - {for_terminal(problem)}" for problem in error.problems)
        return f"corral: {len(error.problems)} problems in the config:\n{lines}"
    return f"corral: {for_terminal(str(error))}"


def shown(value: Any) -> str:
    """A value as the user would write it in yaml, cut to 80 characters."""
    text = (
        {True: "true", False: "false"}[value] if isinstance(value, bool) else "null" if value is None else repr(value)
    )
    return text if len(text) <= 80 else text[:77] + "..."


def leave_with_code(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit with its code; a CorralError becomes its sentence and its code.

    Nothing that is printed, a traceback neither, shows a secret or acts on the terminal. In a locale that is not UTF-8,
    what stdout cannot hold is written as an escape, as Python does on stderr.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with guarded():
        try:
            sys.argv[1:] = _arguments()
            code = main() or 0
        except CorralError as error:
            print(describe(error), file=sys.stderr, flush=True)
            code = error.code
        except BrokenPipeError:
            # The reader (head, less) has seen enough. Python would complain again when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        except KeyboardInterrupt:
            print("corral: interrupted", file=sys.stderr, flush=True)
            code = 130
        except Exception:  # a defect: its traceback, while no secret passes
            traceback.print_exc()
            code = 1
    sys.exit(code)


def _arguments() -> list[str]:
    try:
        words = spelt_out(sys.argv[1:])
    except OSError as error:
        raise MissingInput(f"@{error.filename}: the arguments in it cannot be read: {error.strerror}") from None
    learn_from(words)
    return words
