"""``python -m train.chat model=DIR [prompt=...]``: talk to an exported model, or get one answer on stdout.

The code that encoded the training data also encodes the prompt, with the template that the export's ``corral.json``
names. So the model sees the same form of prompt as in training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import TextStreamer

from conf.errors import BadData, MissingInput, shown
from conf.foreign.json_file import read_object
from conf.safety.console import SafeConsole
from data_prep.rows.conversation import Conversation, Message, Rejected
from data_prep.samples.encode import encode_prompt
from data_prep.templates.prompts import Template
from data_prep.tokenizer.tokenizer import Tokenizer, load_tokenizer
from train.export.exported import CURE, is_model, load_model


@dataclass
class Speaker:
    """A model with its tokenizer and the template of its training."""

    model: Any
    """A transformers model, perhaps inside PEFT's adapter."""
    tokenizer: Tokenizer
    template: str
    max_new_tokens: int = 256
    temperature: float = 0.0

    @property
    def keeps_turns(self) -> bool:
        """Whether the template can hold a conversation of several turns."""
        return self.template == "chat"

    def prompt_ids(self, messages: list[Message]) -> list[int]:
        """The token ids before the answer. Raises BadData if the template cannot hold ``messages``."""
        try:
            return encode_prompt(Conversation(tuple(messages)), self.template, self.tokenizer)
        except Rejected as error:
            raise BadData(
                f"the model's template {self.template!r} cannot hold this conversation: {error.reason}; "
                "change the prompt, input or system message"
            ) from error

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


def open_speaker(folder: Path, *, max_new_tokens: int, temperature: float, trust_remote_code: bool = False) -> Speaker:
    """Load an exported model. Raises MissingInput (66) if ``folder`` contains none."""
    if not is_model(folder):
        problem = "contains no model" if folder.is_dir() else "does not exist"
        exported = folder / "export"
        remedy = (
            f"model={exported}" if is_model(exported) else "the folder that `python -m train.export run_dir=DIR` wrote"
        )
        raise MissingInput(f"model={folder} {problem}; give {remedy}")
    model = load_model(folder, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Speaker(model.to(device).eval(), tokenizer, template_of(folder, tokenizer), max_new_tokens, temperature)


def template_of(folder: Path, tokenizer: Tokenizer) -> str:
    """The template in ``corral.json``. Without that file: chat if the tokenizer has a chat template, else plain.

    Raises BadData for a file that names no template.
    """
    path = folder / "corral.json"
    if path.is_file():
        named = read_object(path, CURE, key="model").get("template")
        if named not in get_args(Template):
            raise BadData(
                f"model: {path} says template {shown(named)}, and there are {', '.join(get_args(Template))}; {CURE}"
            )
        return str(named)
    return "chat" if tokenizer.chat_template else "plain"


@dataclass
class Talk:
    """An interactive conversation: reads a line, answers it, and keeps the turns if the template can hold them."""

    speaker: Speaker
    read: Callable[[], str]
    console: SafeConsole
    system: str = ""
    messages: list[Message] = field(default_factory=list)

    def run(self) -> None:
        """Talk until /quit or the end of input."""
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
        except KeyboardInterrupt:  # stop this answer, not the conversation
            self.messages.pop()
            self.console.print()
            return
        self.messages.append(Message("assistant", answer))


class Streamer(TextStreamer):  # type: ignore[misc]
    """Prints text as the model generates it; transformers' class finds the word boundaries."""

    def __init__(self, tokenizer: Tokenizer, console: SafeConsole) -> None:
        super().__init__(PlainDecoder(tokenizer), skip_prompt=True)
        self.console = console

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.console.print(text, end="\n" if stream_end else "", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class PlainDecoder:
    """Corral's tokenizer with the only method that TextStreamer calls."""

    tokenizer: Tokenizer

    def decode(self, ids: list[int], **_: Any) -> str:
        return self.tokenizer.decode([int(token) for token in ids])


def opening(system: str) -> list[Message]:
    return [Message("system", system)] if system else []
