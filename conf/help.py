"""The text that ``--help`` prints: what a command does, its own keys, the groups with their entries, examples."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping

WIDTH = 110
STARTERS = ("python ", "torchrun ", "sbatch ", "corral ")
"""A command that begins with one of these is shown as it is; any other is a module."""


def help_text(command: str, extra: Mapping[str, str], groups: Mapping[str, list[str]]) -> str:
    """Help of ``command`` (a module such as ``data_prep``, or the words that start it). Without groups: values only."""
    start = command if command.startswith(STARTERS) else f"python -m {command}"
    own = "".join(f" [{key}=...]" for key in extra)
    choices = " [GROUP=NAME ...]" if groups else ""
    parts = [f"usage: {start}{own}{choices} [KEY=VALUE ...]", _purpose(), _own_keys(extra)]
    parts += [_group_list(groups), _values(bool(groups)), _options(bool(groups)), _examples(start, bool(groups))]
    return "\n\n".join(part for part in parts if part)


def _purpose() -> str:
    """The docstring of the module that was started, which says what its command does."""
    return textwrap.dedent(getattr(sys.modules.get("__main__"), "__doc__", None) or "").strip()


def _own_keys(extra: Mapping[str, str]) -> str:
    lines = [f"  {key + '=...':<18} {text}" for key, text in extra.items()]
    return "\n".join(["keys of this command:", *lines]) if lines else ""


def _group_list(groups: Mapping[str, list[str]]) -> str:
    indent = " " * 15
    lines = [
        textwrap.fill(", ".join(names), WIDTH, initial_indent=f"  {group:<12} ", subsequent_indent=indent)
        for group, names in groups.items()
    ]
    return "\n".join(["groups, chosen with GROUP=NAME:", *lines]) if lines else ""


def _values(composed: bool) -> str:
    lines = ["  optim.lr=1e-5      a single value; every key, its unit and its default's reason: conf/schema.py"]
    if composed:
        lines += [
            "  +data.sources.NAME='{format: alpaca, path: FILE}'    adds a source;  ~data.sources.NAME  takes it away",
        ]
    lines += ["  KEY='\"any text\"'    text with commas, brackets, quotes or parentheses: quote it twice as here"]
    return "\n".join(["values:", *lines])


def _options(composed: bool) -> str:
    lines = ["  --cfg job          print the resolved config and leave", "  --help             this text"]
    if composed:
        lines.insert(
            1,
            "  --config-dir DIR   your own groups: DIR/data/mine.yaml is data=mine, DIR/experiment/x.yaml experiment=x",
        )
    return "\n".join(["options:", *lines])


def _examples(start: str, composed: bool) -> str:
    if not composed:
        return f"example:\n  {start} run_dir=outputs/demo"
    lines = [
        f"  {start} experiment=demo",
        f"  {start} experiment=alpaca_gpt2_full data.sources.alpaca.path=FILE zero=2 optim.lr=1e-5",
        f"  {start} experiment=demo debug=fast --cfg job",
    ]
    return "\n".join(["examples:", *lines])
