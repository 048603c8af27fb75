"""Talk to an exported model, or get one answer on stdout.

In a talk, /reset forgets what was said; /quit or Ctrl-D leaves.

example: python -m train.chat model=outputs/demo/export prompt='Say thank you for the lamp.'
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.text import Text

from conf.command import own_keys_from_argv
from conf.errors import ConfigError, leave_with_code
from conf.safety.console import SafeConsole
from conf.safety.streams import show
from data_prep.rows.conversation import Message

KEYS = {
    "model": "folder of an exported model, as python -m train.export writes it (required)",
    "prompt": "answer this one instruction on stdout and leave; without it: an interactive talk",
    "input": "more text that belongs to the instruction (Alpaca's input)",
    "system": "a system message, if the model's template has one",
    "max_new_tokens": "longest answer in tokens; default 256",
    "temperature": "0 (default): always the most likely token; above 0: sample",
    "trust_remote_code": "true: run Python code that the folder brings; false (default): none of it runs",
}


def number(own: Mapping[str, str], key: str, default: float) -> float:
    """The value of ``key`` as a number of 0 or more. Raises ConfigError."""
    try:
        value = float(own.get(key, default))
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"{key}={own[key]}: not a number of 0 or more")
    return value


def yes_or_no(own: Mapping[str, str], key: str) -> bool:
    """Whether ``key`` is true; false if it was not given. Raises ConfigError."""
    if own.get(key, "false") not in ("true", "false"):
        raise ConfigError(f"{key}={own[key]}: must be true or false")
    return own.get(key) == "true"


def main() -> int:
    own = own_keys_from_argv(sys.argv[1:], command="train.chat", keys=KEYS)
    if not own.get("model"):
        raise ConfigError("model: missing; name the folder of an exported model with model=DIR")
    from train.process.causes import causes_named  # torch only now: a typo is told within a second

    with causes_named():
        talk(own)
    return 0


def talk(own: Mapping[str, str]) -> None:
    """One answer, or a talk."""
    from train.chat.speaker import Talk, open_speaker, opening

    speaker = open_speaker(
        Path(own["model"]),
        max_new_tokens=max(1, int(number(own, "max_new_tokens", 256))),
        temperature=number(own, "temperature", 0.0),
        trust_remote_code=yes_or_no(own, "trust_remote_code"),
    )
    system = own.get("system", "")
    if "prompt" in own:
        asked = Message("user", own["prompt"], context=own.get("input", ""))
        show(speaker.answer([*opening(system), asked]))
        return
    console = SafeConsole()
    console.print(f"{own['model']} ({speaker.template} template); /reset forgets, /quit leaves", style="dim")
    Talk(speaker, lambda: console.input(Text("> ", style="bold")), console, system).run()


if __name__ == "__main__":
    leave_with_code(main)
