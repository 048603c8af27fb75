"""What stands in a MANIFEST.json: the keys that somebody reads, each with its type."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from conf.foreign.limits import MOST_TOKENS
from conf.foreign.shape import fault_of
from conf.schema.fields import SampleKind

Number = Annotated[int, Field(ge=0, le=2**53)]
Ids = list[Annotated[int, Field(ge=0, le=2**31 - 1)]]
STRICT = ConfigDict(strict=True, extra="ignore")


class File(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    file: str
    bytes: Number
    xxh3: str


class Shard(File):
    rows: Number
    tokens: Number


class Split(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    rows: Number
    tokens: Number
    supervised_tokens: Number
    prefixes: list[Ids]
    lengths: File | None
    weights: NotRequired[File]
    shards: list[Shard]


class Source(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    rows: NotRequired[Number]
    left_out: NotRequired[Number]
    rejected: NotRequired[dict[str, Number]]
    normalised: NotRequired[dict[str, Number]]
    found: NotRequired[dict[str, Number]]
    unread: NotRequired[dict[str, Number]]
    truncated: NotRequired[Number]
    split: NotRequired[Number]
    floor: NotRequired[Number]
    kind: NotRequired[SampleKind]
    splits: dict[str, Split]
    identity: NotRequired[str]


class Tokenizer(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    fingerprint: str
    vocab_size: Annotated[int, Field(ge=1, le=MOST_TOKENS)]
    new_ids: NotRequired[Ids]
    files: NotRequired[list[File]]


class RawFile(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    path: str


class Manifest(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    tokenizer: Tokenizer
    template: dict[str, str]
    config_sha256: str
    config: dict[str, Any]
    seq_len: Number
    max_tokens: Number
    min_vocab: Number
    files: dict[str, list[RawFile]]
    evaluation_files: NotRequired[list[RawFile]]
    sources: dict[str, Source]


@cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def problem(manifest: dict[str, Any]) -> str:
    """The first thing that is wrong with ``manifest``, by its place; empty text if nothing is."""
    if fault := fault_of(_adapter(), manifest):
        return fault
    for name, source in manifest["sources"].items():
        if name not in manifest["files"]:
            return f"files.{name} is missing"
        for split, part in source["splits"].items():
            place = f"sources.{name}.splits.{split}"
            if part["rows"] and part["lengths"] is None:
                return f"{place}.lengths is missing"
            if part["rows"] != sum(shard["rows"] for shard in part["shards"]):
                return f"{place}.rows is not the sum of those of its shards"
    return ""
