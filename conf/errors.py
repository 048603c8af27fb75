"""One exception class per kind of user mistake, each with its exit code.

Every message is one sentence or a short list: what is wrong, where (file, line, key), why, and what to do.
``leave_with_code`` is the edge: it turns such an exception into that sentence on stderr and the code, so that a
user never reads a traceback for a mistake of their own. A traceback therefore always means a defect of Corral.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn


class CorralError(Exception):
    """A failure that has a name and an exit code. Subclasses set ``code``; ``str(error)`` is what the user reads."""

    code = 70


class BadData(CorralError):
    """Rows or files whose content is wrong: over the bad-row budget, hash mismatch, changed while read."""

    code = 65


class MissingInput(CorralError):
    """A file, folder, corpus or model that was named and is not there."""

    code = 66


class Unavailable(CorralError):
    """A service or an optional package that this run needs is not to be had."""

    code = 69


class InternalError(CorralError):
    """Non-finite numbers without a way back, or a state that should not exist."""

    code = 70


class OutOfMemory(CorralError):
    """The device or host memory does not suffice; never retried at the same size."""

    code = 71


class CannotCreate(CorralError):
    """Output cannot be created, or another run holds the lock on it."""

    code = 73


class StorageError(CorralError):
    """Input/output failure, full disk, or no checkpoint that verifies."""

    code = 74


class Requeue(CorralError):
    """Not a failure: a checkpoint is on disk and the run wants to be started again."""

    code = 75


class DistributedFailure(CorralError):
    """A rank died or hung, or a collective timed out."""

    code = 76


class PermissionDenied(CorralError):
    """The user may not read or write what was named."""

    code = 77


class ConfigError(CorralError):
    """Settings that are wrong. Holds all of them: ``problems`` is one line per problem, path first."""

    code = 78

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def describe(error: CorralError) -> str:
    """The text a user reads for ``error``: one line, or a counted list for several config problems."""
    if isinstance(error, ConfigError) and len(error.problems) > 1:
        lines = "\n".join(f"  - {problem}" for problem in error.problems)
        return f"corral: {len(error.problems)} problems in the config:\n{lines}"
    return f"corral: {error}"


def leave_with_code(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit with its code; a CorralError becomes its sentence and its code."""
    try:
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
    sys.exit(code)
