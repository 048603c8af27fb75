"""Data sets of the Hugging Face hub as records, streamed, and each failure of the hub as one sentence.

A name is pinned to the commit it stands for when preparation begins, so that every process and every restart reads the
same rows, and the corpus says which they were. Everything heavy is imported when a hub is asked for.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from conf.errors import BadData, ConfigError, MissingInput, Unavailable
from data_prep.rows import tables

PREFIX = "hf://"
SPELLING = "hf://datasets/OWNER/NAME[@REVISION][:CONFIG][/SPLIT]"
PARTS = re.compile(
    r"hf://datasets/(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w.-]+))?(:(?P<config>[\w.-]+))?(/(?P<split>[\w.-]+))?"
)
TIMEOUT_S = 8.0


@contextmanager
def asking(what: str, key: str, otherwise: str) -> Iterator[None]:
    """Around a question to the hub about ``what`` (a setting's ``key`` named it): its failures as ours.

    Raises MissingInput (no such repository or revision) and Unavailable (gated, or not reachable: ``otherwise`` says
    what to do instead).
    """
    from huggingface_hub import errors, get_session

    # The hub client's HTTP library changed names between versions (requests, httpx, httpx2); each has this class.
    http_error: type[Exception] = sys.modules[type(get_session()).__module__.split(".")[0]].HTTPError
    try:
        yield
    except errors.GatedRepoError as error:
        raise Unavailable(
            f"{key}: {what} is gated; accept its licence on the hub and log in (hf auth login)."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise MissingInput(
            f"{key}: the hub's {what} has no such revision; look it up on the page of the repository."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise MissingInput(
            f"{key}: there is no (public) repository {what} on the hub; check its spelling, or log in (hf auth login)."
        ) from error
    except FileNotFoundError as error:
        why = " ".join(str(error).split())
        raise MissingInput(f"{key}: the hub's {what} holds no rows that can be read ({why}).") from error
    except (errors.OfflineModeIsEnabled, errors.HfHubHTTPError, http_error, OSError) as error:
        raise Unavailable(
            f"{key}: the hub cannot be reached for {what} ({type(error).__name__}); {otherwise}."
        ) from error


def is_hub(name: str) -> bool:
    return name.startswith(PREFIX)


def pinned(name: str, key: str) -> str:
    """``name`` with the commit of its revision and its split spelt out; asks the hub once, within 10 s.

    Raises ConfigError (another spelling), MissingInput and Unavailable, each led by ``key``.
    """
    from huggingface_hub import HfApi

    parts = _parts(name, key)
    repo = str(parts["repo"])
    with asking(f"data set {repo}", key, "download its files where there is a network and name those"):
        info = HfApi().dataset_info(repo, revision=parts["revision"], timeout=TIMEOUT_S)
    config = f":{parts['config']}" if parts["config"] else ""
    return f"{PREFIX}datasets/{repo}@{info.sha}{config}/{parts['split'] or 'train'}"


def _parts(name: str, key: str) -> Mapping[str, str | None]:
    found = PARTS.fullmatch(name)
    if found is None:
        raise ConfigError(f"{key}: {name!r} is not the name of a data set of the hub; write it as {SPELLING}")
    return found.groupdict()


def texts(name: str) -> Iterator[str]:
    """JSON text of each row of a pinned name, in order and in bounded memory.

    Raises MissingInput (no such config or split), Unavailable (the connection broke) and BadData (files that do not
    fit together), each naming ``name``.
    """
    parts = _parts(name, name)
    row = 0
    try:
        with asking(f"data set {parts['repo']}", name, "run again: finished blocks are kept"):
            for values in _stream(str(parts["repo"]), parts["config"], str(parts["split"]), parts["revision"]):
                yield json.dumps(values, ensure_ascii=False, default=tables.foreign)
                row += 1
    except (ValueError, RuntimeError, pa.ArrowException) as error:
        why = " ".join(str(error).split())
        if row == 0:
            raise MissingInput(f"{name} cannot be opened: {why}") from error
        raise BadData(
            f"{name} cannot be read after {row:,} rows ({why}); "
            "name another revision, or download its files and name those."
        ) from error


def _stream(repo: str, config: str | None, split: str, revision: str | None) -> Iterator[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    yield from datasets.load_dataset(repo, config, split=split, revision=revision, streaming=True)
