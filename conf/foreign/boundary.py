"""The one boundary around the content of files that others wrote.

Libraries say of a bad file whatever comes first: tokenizers a plain Exception or a Rust panic, safetensors, struct and
dataclasses errors of their own, transformers KeyError, AttributeError or ImportError. None of them is a defect of
Corral, and none names the file. ``reading`` makes one sentence of each. It stands around the reading of foreign content
alone: around more, it would hide our own defects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conf.errors import BadData, CorralError, MissingInput, OutOfMemory, PermissionDenied, StorageError

LONGEST_WHY = 200
"""Characters of a library's message that are shown: some quote the whole file."""
OWN_WORDS = (OSError, ValueError, RuntimeError)
"""Kinds whose text says what is wrong with a file. Of every other kind the name belongs to what it says."""
NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "not enough memory", "alloc failed")
OBJECT = re.compile(r"<([\w.]+) object at 0x[0-9a-f]+>")
TO_TRUST = re.compile(r"(If you trust|This file can still be loaded|Please pass the argument `trust).*")
"""Where libraries begin to say how to read a file that may run code: no advice of ours."""
PASSED_ON = (CorralError, KeyboardInterrupt, SystemExit, GeneratorExit)
"""What is none of the file's doing: our own sentences, and a process or generator that is asked to end."""


@contextmanager
def reading(what: str | Path, cure: str) -> Iterator[None]:
    """Whatever is raised while ``what`` is read, as one sentence with ``cure``, which completes "...; ".

    ``what``: the file, led by the setting that names it. Raises BadData; MissingInput, PermissionDenied and
    StorageError for what the disk says; OutOfMemory if the content asks for more memory than there is.
    """
    try:
        yield
    except PASSED_ON:
        raise
    except BaseException as error:  # any library raises any kind here; Rust panics are no Exception
        raise _named(error, str(what), cure) from error


def _named(error: BaseException, what: str, cure: str) -> CorralError:
    if isinstance(error, OSError) and error.errno is not None:  # the disk's own word, not a library's
        return _of_disk(error, what, cure)
    if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in NO_MEMORY):
        return OutOfMemory(f"{what} asks for more memory than there is ({why_of(error)}); {cure}")
    return BadData(f"{what} cannot be used: {why_of(error)}; {cure}")


def _of_disk(error: OSError, what: str, cure: str) -> CorralError:
    said = f"{what} cannot be read: {error.strerror or error}"
    if isinstance(error, FileNotFoundError):
        missing = f" ({error.filename})" if error.filename and str(error.filename) not in what else ""
        return MissingInput(f"{said}{missing}; {cure}")
    if isinstance(error, PermissionError):
        return PermissionDenied(f"{said}; ask its owner for read access, or copy it")
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return BadData(f"{said}; {cure}")
    return StorageError(f"{said}; check the disk, or copy the file from another one")


def why_of(error: BaseException) -> str:
    """What a library says is wrong, on one line."""
    if isinstance(error, RecursionError):
        return "its values are nested too deeply"
    text = OBJECT.sub(r"\1", TO_TRUST.sub("", " ".join(str(error).split()))).rstrip(". ")
    text = text if len(text) <= LONGEST_WHY else f"{text[:LONGEST_WHY]}..."
    if isinstance(error, KeyError):
        return f"it has no {text}"
    return text if text and isinstance(error, OWN_WORDS) else f"{type(error).__name__}: {text}".rstrip(": ")
