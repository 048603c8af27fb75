"""Damage to files that others write: bytes, JSON, rows, tokenizers, configs, corpora and command lines.

Each function takes a source of chance, ``random.Random(seed)`` or hypothesis's ``randoms()``, and something whole, and
returns it with some damage. The same seed gives the same damage.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from conf.durable import xxh3_of

DEEP = 100_000
HUGE = 10**30
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63) - 1, HUGE, 1e308, float("nan"), float("inf"), "", " ", "0",
    "-1", "\x00", "\ud800", "\x1b[31m", "../../etc/passwd", "x" * 5_000, [], [[]], {}, {"": None}, ["a"], [None],
    {"a": {"b": 1}}, {"\ud800": "\udcff"}, "red \ud83d", "\udc80",
)  # fmt: skip
"""Values that a key may hold where another is meant."""
TEXTS = ("\ud800", "\udcff", "\x00", "\x1b[2J", "<|im_end|>", "{{ 1 }}", "{% raw %}", "\u202e", "\ue0f00\ue0f1", "\\")
"""What may stand inside a text."""
BYTES = (b"", b"\x00", b"\xff", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b'"', b"{", b"[", b"]" * 3, b"9" * 400, b"\\ud800")


def bytes_of(rng: Random, content: bytes) -> bytes:
    """``content`` cut, with bytes flipped, taken out, put in or repeated."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        span = rng.choice([1, 1, 2, 8, 64, len(changed) // 2])
        match rng.randrange(5):
            case 0:
                del changed[at : at + span]
            case 1:
                changed[at:at] = rng.choice(BYTES)
            case 2:
                changed[at:at] = changed[at : at + span]
            case 3:
                del changed[at:]
            case _:
                for place in range(at, min(at + span, len(changed))):
                    changed[place] = rng.randrange(256)
    return bytes(changed)


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside ``value``."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*above, key)
        yield from places(inner, (*above, key))


def json_of(rng: Random, value: Any) -> Any:
    """``value`` with one to three of its inner values changed, gone, moved, doubled or renamed."""
    changed = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        found = list(places(changed))
        if not found:
            return copy.deepcopy(rng.choice(ODD))
        *above, key = rng.choice(found)
        parent = changed
        for each in above:
            parent = parent[each]
        match rng.randrange(7):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[f"{key}x"] = parent.pop(key)
            case 2:
                parent[key] = [copy.deepcopy(parent[key])]
            case 4 if isinstance(parent[key], str):
                at = rng.randrange(len(parent[key]) + 1)
                parent[key] = parent[key][:at] + rng.choice(TEXTS) + parent[key][at:]
            case 3:
                other = changed
                for each in rng.choice(found):
                    if not isinstance(other, dict | list) or (isinstance(other, dict) and each not in other):
                        break
                    if isinstance(other, list) and not (isinstance(each, int) and each < len(other)):
                        break
                    other = other[each]
                parent[key] = copy.deepcopy(other)
            case _:
                parent[key] = copy.deepcopy(rng.choice(ODD))
    return changed


def json_text_of(rng: Random, value: Any) -> bytes:
    """A JSON text of ``value``: with damage inside it, in its bytes, or around it."""
    match rng.randrange(40):
        case 0 | 4 | 5 | 6:
            return bytes_of(rng, json.dumps(value).encode())
        case 1:
            return json.dumps(rng.choice(ODD)).encode()
        case 2:
            return b"[" * DEEP + b"]" * rng.choice([0, DEEP])
        case 3:
            return b'{"a":' * DEEP + b"1" + b"}" * DEEP
        case _:
            return json.dumps(json_of(rng, value)).encode()


def folder_of(rng: Random, folder: Path, names: tuple[str, ...]) -> str:
    """Damage one of the files ``names`` in ``folder``; returns what was done, for a message."""
    name = rng.choice([each for each in names if (folder / each).is_file()])
    content = (folder / name).read_bytes()
    if rng.random() < 0.05:
        (folder / name).unlink()
        return f"{name} removed"
    if name.endswith(".json") and rng.random() < 0.8:
        changed = json_text_of(rng, json.loads(content))
    else:
        changed = bytes_of(rng, content)
    (folder / name).write_bytes(changed)
    return f"{name}: {changed[:300]!r}"


def columns_of(rng: Random, table: Any) -> Any:
    """A shard with the same columns and types, and some numbers that no writer would put there."""
    name = rng.choice([each for each in table.column_names if each != "row"])
    values = table.column(name).to_pylist()
    row = rng.randrange(len(values))
    wild = [-1, -(2**31), 2**31 - 1, 10**6, 0, 1, 255]
    if isinstance(values[row], list):
        if values[row] and rng.random() < 0.7:
            values[row][rng.randrange(len(values[row]))] = rng.choice(wild)
        else:
            values[row] = values[row][: rng.randrange(len(values[row]) + 1)]
    else:
        values[row] = rng.choice(wild)
    kind = table.schema.field(name).type
    bounds = {pa.uint8(): (0, 255), pa.int16(): (-(2**15), 2**15 - 1)}
    low, high = bounds.get(kind.value_type if pa.types.is_list(kind) else kind, (-(2**31), 2**31 - 1))
    clipped = [
        [min(max(one, low), high) for one in each] if isinstance(each, list) else min(max(each, low), high)
        for each in values
    ]
    return table.set_column(table.column_names.index(name), name, pa.array(clipped, kind))


def corpus_of(rng: Random, folder: Path) -> str:
    """Damage a prepared corpus; half of the times its MANIFEST is made to fit, as one who means harm would."""
    manifest = json.loads((folder / "MANIFEST.json").read_bytes())
    shards = sorted(folder.rglob("*.arrow"))
    match rng.randrange(4):
        case 0:
            (folder / "MANIFEST.json").write_bytes(json_text_of(rng, manifest))
            return f"MANIFEST.json: {(folder / 'MANIFEST.json').read_bytes()[:200]!r}"
        case 1:
            path = rng.choice(sorted(folder.rglob("*.npy")))
            path.write_bytes(bytes_of(rng, path.read_bytes()))
            said = str(path)
        case 2:
            path = rng.choice(shards)
            path.write_bytes(bytes_of(rng, path.read_bytes()))
            said = str(path)
        case _:
            path = rng.choice(shards)
            with pa.ipc.open_stream(path.read_bytes()) as reader:
                table = columns_of(rng, reader.read_all().combine_chunks())
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            said = f"columns of {path}"
    if rng.random() < 0.7:
        reseal(folder)
    return said


def reseal(folder: Path) -> None:
    """Write the sizes and hashes that the files have now into the MANIFEST."""
    path = folder / "MANIFEST.json"
    manifest = json.loads(path.read_bytes())

    def renew(value: Any) -> None:
        if isinstance(value, dict):
            if {"file", "bytes", "xxh3"} <= value.keys() and (folder / value["file"]).is_file():
                file = folder / value["file"]
                value |= {"bytes": file.stat().st_size, "xxh3": xxh3_of(file)}
            for each in value.values():
                renew(each)
        elif isinstance(value, list):
            for each in value:
                renew(each)

    renew(manifest)
    path.write_text(json.dumps(manifest))


WORDS = (
    "1e11", "-1", "0", "1000000000000000000000000000000", "nan", "inf", "null", "true", "''", "[]", "{}", "[[[]]]",
    "{a: 1}", "${name}", "${oc.env:HOME}", "${a.b.c}", "???", "~", "x", "a,b", "a=b", "'", '"', "${", "}", "\\",
    "../..", "1_000", "0x10",
)  # fmt: skip


def overrides_of(rng: Random, keys: Sequence[str], defaults: Mapping[str, Any]) -> list[str]:
    """One to four words of a command line: settings with what they are, near ones and nonsense, with odd values.

    ``keys``: all that there are. ``defaults``: those of a config, with their values.
    """
    words = []
    for _ in range(rng.randint(1, 4)):
        key = rng.choice([*defaults])
        value = json.dumps(defaults[key])
        if rng.random() < 0.4:
            key, value = rng.choice([key, rng.choice(keys)]), rng.choice(WORDS)
        if rng.random() < 0.1:
            at = rng.randrange(len(key) + 1)
            key = key[:at] + rng.choice(["", ".", "x", "..", "@", "[0]", " "]) + key[at + 1 :]
        sign = rng.choice(["", "", "", "", "", "", "+", "++", "~"])
        words.append(f"{sign}{key}" + ("" if sign == "~" and rng.random() < 0.5 else f"={value}"))
    return words


def redirect(path: Path, base: Path) -> None:
    """Let adapters name the base beside them, if they still name one."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError):
        return
    if isinstance(content, dict) and isinstance(content.get("base_model_name_or_path"), str):
        path.write_text(json.dumps(content | {"base_model_name_or_path": str(base)}))
