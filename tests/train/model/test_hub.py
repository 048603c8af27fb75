"""A hub that does not answer, or answers with an error: one sentence within seconds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conf.errors import CorralError, MissingInput, Unavailable
from train.model import weights as base
from train.ranks.group import Ranks


def test_a_hub_that_never_answers_is_left_within_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server that accepts and stays silent; the hub's cache is empty."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        code = (
            "from train.model import weights as base; from train.ranks.group import Ranks; base.HUB_TIMEOUT_S = 0.5\n"
            "from conf.errors import leave_with_code\n"
            "leave_with_code(lambda: base._from_hub('some/model', None, Ranks()))"
        )
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "HF_HOME": str(tmp_path),
            "no_proxy": "127.0.0.1",
            "NO_PROXY": "127.0.0.1",
        }
        start = time.monotonic()
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=60, check=False)
        spent = time.monotonic() - start
    assert done.returncode == 69, done.stderr
    assert "some/model is neither a local folder nor in the local cache" in done.stderr
    assert "Traceback" not in done.stderr
    assert spent < 20


class Answer:
    """As much of an HTTP response as the hub's errors want."""

    headers: dict[str, str] = {}  # noqa: RUF012
    request = None


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("GatedRepoError", MissingInput, "is gated on the Hugging Face hub; accept the licence"),
        ("RepositoryNotFoundError", MissingInput, "neither a local folder nor a model on the Hugging Face hub"),
        ("RevisionNotFoundError", MissingInput, "has no revision v9"),
        ("OfflineModeIsEnabled", Unavailable, "could not be reached"),
    ],
)
def test_each_answer_of_the_hub_has_its_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: type[CorralError], sentence: str
) -> None:
    from huggingface_hub import HfApi, errors

    failure = getattr(errors, name)

    def refuse(*_: object, **__: object) -> None:
        raise failure("no") if name == "OfflineModeIsEnabled" else failure("no", response=Answer())

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(kind, match=sentence):
        base._from_hub("no-such-org/no-such-model", "v9", Ranks())
