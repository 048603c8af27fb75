"""What stands in a checkpoint's MANIFEST.json: the keys that somebody reads, each with its type.

The seal shows damage. It does not show who wrote the MANIFEST: a checkpoint may be a stranger's, with a seal that fits.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from conf.foreign.shape import fault_of

Number = Annotated[int, Field(ge=0, le=2**53)]
STRICT = ConfigDict(strict=True, extra="ignore")


class File(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    bytes: Number
    sha256: str


class Tensor(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    shape: list[Number]
    pieces: list[Any]
    """Millions of them under ZeRO-3: ``fault_of_cover`` looks at each."""


class Manifest(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    step: Number
    optimizer_steps: Number
    world: Number
    files: dict[str, File]
    tensors: dict[str, Tensor]
    state: NotRequired[dict[str, Any]]
    stream: NotRequired[dict[str, Any]]
    base_hash: NotRequired[str]
    tokenizer: NotRequired[str]
    base_files: NotRequired[list[str]]
    base_config: NotRequired[dict[str, Any]]
    config: NotRequired[dict[str, Any]]
    extras: NotRequired[list[str]]


@cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def fault_of_shape(manifest: Any) -> str:
    """The first thing that is wrong with ``manifest``, by its place; empty text if nothing is."""
    return fault_of(_adapter(), manifest)
