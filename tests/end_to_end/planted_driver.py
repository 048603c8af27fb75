"""A driver of fsspec for ``planted://USER:PASSWORD@/FOLDER?PARAMETERS``: that folder of this machine.

It fails as real ones do, with what it was told: a URL with ``fail`` in its parameters, with the password in the error.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from fsspec.implementations.local import LocalFileSystem


class Planted(LocalFileSystem):  # type: ignore[misc]
    protocol = "planted"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        folder, _, rest = path.rpartition("@")[2].removeprefix("planted://").partition("?")
        return folder + rest.partition("/")[1] + rest.partition("/")[2]

    @classmethod
    def _get_kwargs_from_urls(cls, path: str) -> dict[str, Any]:
        return {"told": path}

    def __init__(self, *args: Any, told: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "fail" in told:
            password = told.rpartition("@")[0].partition("://")[2].partition(":")[2]
            raise RuntimeError(f"403 for {told}: the password {unquote(password)!r} is not the one of this user")
