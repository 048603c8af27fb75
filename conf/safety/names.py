"""Names of variables, settings and parameters of URLs that say that their value is a secret."""

from __future__ import annotations

import re

_SECRET = frozenset({
    "password", "passwd", "passphrase", "passwort", "pass", "pwd", "secret", "secrets", "credential", "credentials",
    "apikey", "accesskey", "privatekey", "signature", "sig", "pat", "sas", "dsn", "auth", "authorization", "bearer",
    "cookie", "jwt",
})  # fmt: skip
"""Last words that say it alone."""
_JOINED = ("password", "passwd", "passphrase", "secret", "token", "apikey", "credentials")
"""Endings of last words: PGPASSWORD, HFTOKEN."""
_KEYS = frozenset({
    "api", "access", "private", "secret", "account", "storage", "shared", "signing", "encryption", "master", "auth",
    "service", "ssh", "license", "subscription", "app", "application", "client", "consumer", "admin", "aws",
    "azure", "google", "gcp", "hf", "openai", "anthropic", "wandb", "comet", "neptune",
})  # fmt: skip
"""What a ``key`` is of that is a secret; the key of a mapping is none."""
_WORDS_OF_MODELS = frozenset({
    "bos", "eos", "pad", "unk", "sep", "cls", "mask", "image", "img", "audio", "video", "vision", "speech", "start",
    "end", "stop", "eot", "eom", "boi", "eoi", "begin", "special", "next", "first", "last", "new", "per", "prompt",
    "text", "word", "added", "extra", "prefix", "suffix", "middle", "fim", "think", "answer", "user", "assistant",
    "system", "tool", "sub", "sot", "target", "source",
})  # fmt: skip
"""What a ``token`` is of that is a piece of text."""
_DATABASES = frozenset({
    "database", "db", "redis", "mongo", "mongodb", "postgres", "postgresql", "pg", "mysql", "amqp", "rabbitmq",
    "broker",
})  # fmt: skip
_PUBLIC = re.compile(
    r"(?:PWD|OLDPWD|HOME|USER|LOGNAME|USERNAME|HOSTNAME|SHELL|TMPDIR|TMP|TEMP|LANG|LC_\w+|CUDA_VISIBLE_DEVICES"
    r"|WANDB_(?:PROJECT|ENTITY|NAME|RUN_GROUP)|SLURM_(?!JWT)\w+)"
)


def names_secret(name: str, *, variable: bool = False, in_query: bool = False) -> bool:
    """Whether a value of this name is a secret.

    ``variable``: of an environment variable, ``in_query``: of a parameter in a URL, where every ``key`` is one.
    """
    *before, last = _words(name) or [""]
    of = before[-1] if before else ""
    if last == "token":
        return variable or of not in _WORDS_OF_MODELS
    if last == "key":
        return variable or in_query or of in _KEYS
    if last in ("url", "uri"):
        return variable and of in _DATABASES
    if last in ("id", "string"):
        return [*before[-2:], last] in (["access", "key", "id"], ["google", "access", "id"]) or of == "connection"
    return last in _SECRET or (last.endswith(_JOINED) and last.removesuffix("token") not in _WORDS_OF_MODELS)


def is_public_variable(name: str) -> bool:
    """Whether everyone on the machine knows the variable: of the shell, of SLURM, or a name that W&B shows anyway."""
    return _PUBLIC.fullmatch(name) is not None


def _words(name: str) -> list[str]:
    """``X-Amz-Signature``, ``AccountKey2`` -> lower-case words without numbers at the end."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    words = [word.rstrip("0123456789") for word in re.split(r"[^A-Za-z0-9]+", parted.lower())]
    while words and not words[-1]:
        words.pop()
    return words
