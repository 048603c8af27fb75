"""``python -m train.chat model=DIR [prompt=...]``: talk to an exported model, or get one answer on stdout.

The prompt's tokens are made by the code that made the training data, from the template named in ``corral.json`` of
the export, so a model is asked exactly as it was taught.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TextStreamer

from conf.errors import BadData, ConfigError, MissingInput, leave_with_code
from data_prep.chat import encode_prompt
from data_prep.conversation import Conversation, Message, Rejected
from data_prep.tokenizer import Tokenizer, load
from train.arguments import run_arguments
from train.exported import is_model, load_model

USAGE = """usage: python -m train.chat model=DIR [prompt=TEXT] [key=value ...]
  model           folder with an exported model (python -m train.export)
  prompt          answer this one instruction on stdout and leave; without it: an interactive talk
  input           more text that belongs to the instruction (Alpaca's input)
  system          a system message, where the template has a place for one
  max_new_tokens  longest answer in tokens; default 256
  temperature     0 (default): always the most likely token; above: sample
In a talk: /reset forgets what was said, /quit or Ctrl-D leaves."""
KEYS = ("model", "prompt", "input", "system", "max_new_tokens", "temperature")


@dataclass
class Speaker:
    """A model with its tokenizer and the template it was taught with."""

    model: Any
    """A transformers model, or one inside PEFT's adapter."""
    tokenizer: Tokenizer
    template: str
    max_new_tokens: int = 256
    temperature: float = 0.0

    @property
    def keeps_turns(self) -> bool:
        """Whether the template can hold a talk of several turns."""
        return self.template == "chat"

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """Token ids up to where the answer begins. Raises BadData if the template cannot hold ``messages``."""
        try:
            return encode_prompt(Conversation(tuple(messages)), self.template, self.tokenizer)
        except Rejected as error:
            raise BadData(f"the template {self.template!r} cannot hold this talk: {error.reason}") from error

    def answer(self, messages: list[Message], streamer: Any = None) -> str:
        """The model's next turn; ``streamer`` receives the tokens as they come."""
        ids = torch.tensor([self.prompt_ids(messages)], device=self.model.device)
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        known_end = getattr(self.model.generation_config, "eos_token_id", None) is not None
        ending = {} if known_end else {"eos_token_id": self.tokenizer.eos_id}
        with torch.no_grad():
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.max_new_tokens,
                pad_token_id=self.tokenizer.pad_id,
                use_cache=True,
                streamer=streamer,
                **sampling,
                **ending,
            )
        return self.tokenizer.decode(output[0, ids.shape[1] :].tolist()).strip()


def open_speaker(folder: Path, *, max_new_tokens: int, temperature: float) -> Speaker:
    """Load an exported model. Raises MissingInput (66) if the folder is not one."""
    if not is_model(folder):
        found = "holds no model" if folder.is_dir() else "does not exist"
        exported = folder / "export"
        what = (
            f"model={exported}" if is_model(exported) else "the folder that `python -m train.export run_dir=DIR` wrote"
        )
        raise MissingInput(f"model={folder} {found}; give {what}")
    model = load_model(folder)
    tokenizer = load(str(folder))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Speaker(model.to(device).eval(), tokenizer, template_of(folder, tokenizer), max_new_tokens, temperature)


def template_of(folder: Path, tokenizer: Tokenizer) -> str:
    """The template in ``corral.json``; without that file the tokenizer's chat template, or plain text."""
    path = folder / "corral.json"
    if path.is_file():
        return str(json.loads(path.read_text())["template"])
    return "chat" if tokenizer.chat_template else "plain"


@dataclass
class Talk:
    """An interactive conversation: reads a line, answers, remembers turns where the template can."""

    speaker: Speaker
    read: Callable[[], str]
    console: Console
    system: str = ""
    messages: list[Message] = field(default_factory=list)

    def run(self) -> None:
        """Until /quit or the end of input."""
        self.reset()
        while True:
            try:
                line = self.read().strip()
            except EOFError:
                return
            if line == "/quit":
                return
            if line == "/reset":
                self.reset()
                self.console.print("(forgotten)", style="dim")
            elif line:
                self.turn(line)

    def reset(self) -> None:
        self.messages = opening(self.system)

    def turn(self, line: str) -> None:
        if not self.speaker.keeps_turns:
            self.reset()
        self.messages.append(Message("user", line))
        try:
            answer = self.speaker.answer(self.messages, Streamer(self.speaker.tokenizer, self.console))
        except KeyboardInterrupt:  # stop this answer, not the talk
            self.messages.pop()
            self.console.print()
            return
        self.messages.append(Message("assistant", answer))


class Streamer(TextStreamer):  # type: ignore[misc]
    """Prints text as it is generated; transformers' own class does the word boundaries."""

    def __init__(self, tokenizer: Tokenizer, console: Console) -> None:
        super().__init__(PlainDecoder(tokenizer), skip_prompt=True)
        self.console = console

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.console.print(text, end="\n" if stream_end else "", markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class PlainDecoder:
    """Our tokenizer in the one method that TextStreamer calls."""

    tokenizer: Tokenizer

    def decode(self, ids: list[int], **_: Any) -> str:
        return self.tokenizer.decode([int(each) for each in ids])


def opening(system: str) -> list[Message]:
    return [Message("system", system)] if system else []


def number(arguments: dict[str, str], key: str, default: float) -> float:
    """The value of ``key`` as a number of 0 or more. Raises ConfigError."""
    try:
        value = float(arguments.get(key, default))
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"{key}={arguments[key]}: not a number of 0 or more")
    return value


def main() -> int:
    arguments = run_arguments(sys.argv[1:], KEYS, USAGE)
    if "model" not in arguments:
        raise ConfigError(f"model: missing; name the folder of an exported model.\n{USAGE}")
    speaker = open_speaker(
        Path(arguments["model"]),
        max_new_tokens=max(1, int(number(arguments, "max_new_tokens", 256))),
        temperature=number(arguments, "temperature", 0.0),
    )
    system = arguments.get("system", "")
    if "prompt" in arguments:
        asked = Message("user", arguments["prompt"], context=arguments.get("input", ""))
        print(speaker.answer([*opening(system), asked]))
        return 0
    console = Console()
    console.print(f"{arguments['model']} ({speaker.template} template); /reset forgets, /quit leaves", style="dim")
    Talk(speaker, lambda: console.input("[bold]> [/bold]"), console, system).run()
    return 0


if __name__ == "__main__":
    leave_with_code(main)
