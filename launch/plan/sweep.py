"""``python -m launch plan --sweep KEY=A,B,...``: one line of the plan for every value, and a picture of them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from conf.compose import config_from_argv
from conf.errors import ConfigError, CorralError
from launch.plan.table import Answer, planned, with_nodes
from train.plan import GIB, slice_tokens

SHORT = {"nodes": "cluster.nodes", "gpus_per_node": "cluster.gpus_per_node"}
HEAD = ("GPUs", "zero", "recomp", "micro", "GiB", "fits", "Mtok/s", "hours", "hidden", "good")


@dataclass(frozen=True)
class Point:
    value: str
    answer: Answer | None
    reason: str = ""
    """Why there is no plan for this value."""


def sweep(arguments: Sequence[str], swept: str) -> list[Point]:
    """The plan for every value of ``swept`` (KEY=A,B); a value without a plan says why. Raises ConfigError."""
    key, equals, values = swept.partition("=")
    if not equals or not values:
        raise ConfigError(f"--sweep: got {swept!r}; write a key and its values, such as --sweep nodes=1,8,64,512")
    return [_point(arguments, SHORT.get(key, key), value) for value in values.split(",")]


def _point(arguments: Sequence[str], key: str, value: str) -> Point:
    cfg, _ = config_from_argv([*arguments, f"{key}={value}"], command="launch plan")
    if key == "cluster.nodes":
        cfg = with_nodes(cfg, cfg.cluster.nodes)
    try:
        return Point(value, planned(cfg))
    except CorralError as error:
        return Point(value, None, str(error))


def lines(key: str, points: Sequence[Point]) -> list[str]:
    """A table of 80 columns."""
    name = key.rsplit(".", 1)[-1]
    return [f"{name[:8]:>8}" + "".join(f"{title:>7}" for title in HEAD), *(_line(point) for point in points)]


def _line(point: Point) -> str:
    if point.answer is None:
        return textwrap.shorten(f"{point.value:>8}   {point.reason}", 80, placeholder=" ...")
    cfg, found = point.answer.cfg, point.answer.found
    fast = "-" if isinstance(found.speed, str) else f"{found.speed.tokens_per_second_per_gpu * found.world / 1e6:.3g}"
    hours = f"{sum(found.hours) / 2:.1f}" if found.hours else "-"
    hides = "-"
    if found.stage == 3 and cfg.cluster.nodes > 1:
        hides = "yes" if slice_tokens(cfg, found.micro_size * cfg.data.seq_len) >= found.hiding_tokens else "no"
    fits = "yes" if found.fits(found.chosen) else "no"
    cells = (found.world, found.stage, found.recompute[:6], found.micro_size, f"{found.chosen.device / GIB:.1f}", fits)
    return f"{point.value:>8}" + "".join(f"{cell:>7}" for cell in (*cells, fast, hours, hides, f"{found.goodput:.1%}"))


def to_json(points: Sequence[Point]) -> str:
    found: dict[str, Any] = {
        point.value: point.answer.found.to_dict() if point.answer else {"reason": point.reason} for point in points
    }
    return json.dumps(found, indent=1)
