"""The text that ``--help`` prints: the purpose of a command, its own keys, the groups and their entries, examples."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence

WIDTH = 110
STARTERS = ("python ", "torchrun ", "sbatch ", "corral ")
"""A command that begins with one of these is shown as it is; any other is a module."""
REQUIRED = "(required)"
COMPOSED = [
    "  data.sources='{NAME: {format: alpaca, path: FILE}}'   your sources; +data.sources.NAME adds to data=ENTRY"
]


def help_text(
    command: str,
    own_keys: Mapping[str, str],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    sections: Sequence[str] = (),
) -> str:
    """The help of ``command``: a module such as ``data_prep``, or the words that start it.

    ``own_keys`` maps the command's own keys to their help; a help that ends with REQUIRED marks a key that must be
    given. ``groups`` maps each group to its entries, for a command that composes a config. ``sections`` are the
    sections of a finished run's config that a command reads. With neither, the command takes its own keys alone.
    """
    start = command if command.startswith(STARTERS) else f"python -m {command}"
    own = "".join(f" {key}=..." if text.endswith(REQUIRED) else f" [{key}=...]" for key, text in own_keys.items())
    choices = " [GROUP=NAME ...]" if groups else ""
    values = " [KEY=VALUE ...]" if groups or sections else ""
    parts = [f"usage: {start}{own}{choices}{values}", _purpose(), _own_keys(own_keys)]
    if groups:
        parts += [_group_list(groups), _values("optim.lr=1e-5", COMPOSED), _options(composed=True), _examples(start)]
    elif sections:
        of_run = [f"  {'':<20} KEY is a setting of the run in: {', '.join(sections)}"]
        parts += [_values(f"{sections[0]}.KEY=VALUE", of_run), _options(composed=False)]
    else:
        parts.append(_options(composed=False))
    if "run_dir" in own_keys:
        parts.append(f"example:\n  {start} run_dir=outputs/demo")
    return "\n\n".join(part for part in parts if part)


def _purpose() -> str:
    """The docstring of the module that was started; it says what the command does."""
    return textwrap.dedent(getattr(sys.modules.get("__main__"), "__doc__", None) or "").strip()


def _own_keys(extra: Mapping[str, str]) -> str:
    below = "\n" + " " * 23
    lines = [f"  {key + '=...':<20} {text.replace(chr(10), below)}" for key, text in extra.items()]
    return "\n".join(["keys of this command:", *lines]) if lines else ""


def _group_list(groups: Mapping[str, Sequence[str]]) -> str:
    indent = " " * 15
    lines = [
        textwrap.fill(", ".join(names), WIDTH, initial_indent=f"  {group:<12} ", subsequent_indent=indent)
        for group, names in groups.items()
    ]
    return "\n".join(["groups, chosen with GROUP=NAME:", *lines]) if lines else ""


def _values(example: str, further: Sequence[str]) -> str:
    lines = [
        "values:",
        f"  {example:<20} set one value; conf/schema/run.py lists every key, its unit and the reason for its default",
        *further,
        "  KEY='\"any text\"'     text with commas, brackets, quotes or parentheses needs both pairs of quotes",
    ]
    return "\n".join(lines)


def _options(composed: bool) -> str:
    lines = [
        "  --cfg job            print the resolved config and exit",
        "  --help               print this text and exit",
    ]
    if composed:
        lines.insert(
            1,
            "  --config-dir DIR     your own groups: DIR/data/mine.yaml is data=mine, DIR/model/x.yaml is model=x",
        )
    return "\n".join(["options:", *lines])


def _examples(start: str) -> str:
    lines = [
        f"  {start} experiment=demo",
        f"  {start} experiment=alpaca_gpt2_full data.sources.alpaca.path=FILE zero=2 optim.lr=1e-5",
        f"  {start} experiment=demo debug=fast --cfg job",
    ]
    return "\n".join(["examples:", *lines])
