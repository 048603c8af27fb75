"""Secrets out of what leaves the process: settings handed to W&B, settings shown in the report."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "[redacted]"

# A key names a secret by its last words. "token" alone does not: eos_token and max_new_tokens are settings.
SECRET_KEY = re.compile(
    r"(?i)(^|[._-])(password|passwd|secret|credentials?|api[_-]?key|access[_-]?key|private[_-]?key|secret[_-]?key"
    r"|(auth|access|api|hf|hub|bearer|session|wandb|github)[_-]?token)$"
)
# Names of environment variables whose values must appear nowhere.
SECRET_VARIABLE = re.compile(r"(?i)(password|passwd|secret|api_?key|access_?key|private_?key|_token)$")
# Shapes of well-known tokens (Hugging Face, GitHub, OpenAI-like, W&B, AWS), and the user part of a URL.
SECRET_SHAPE = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[A-Za-z0-9_-]{20,}|wandb_v1_\w{20,}|AKIA[0-9A-Z]{16})\b"
)
URL_USER = re.compile(r"(?<=://)[^/\s:@]+(:[^/\s@]*)?(?=@)")


def environment_secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Values of the variables that look like secrets; shorter than 8 characters would hit innocent text."""
    found = os.environ if environment is None else environment
    return tuple(value for name, value in found.items() if SECRET_VARIABLE.search(name) and len(value) >= 8)


def redact_text(text: str, secrets: Iterable[str] = ()) -> str:
    """``text`` without the given values, tokens of a known shape and users in URLs."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return URL_USER.sub(HIDDEN, SECRET_SHAPE.sub(HIDDEN, text))


def redact(value: Any, secrets: Iterable[str] | None = None) -> Any:
    """A copy of plain data (dicts, lists, scalars) without secrets; ``secrets`` defaults to the environment's."""
    known = environment_secrets() if secrets is None else tuple(secrets)
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if each and SECRET_KEY.search(str(key)) else redact(each, known) for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(each, known) for each in value]
    return redact_text(value, known) if isinstance(value, str) else value
