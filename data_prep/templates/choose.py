"""Which chat template a corpus uses: the tokenizer's own, a shipped one, or the user's file; with a fixed date.

Shipped ones are ``shipped/*.jinja``, and ``alpaca``, which is the template of that name in jinja (prompts.py). A
template that asks for today's date gets one date for the whole corpus, written into its text in the place of the
question: then training, evaluation and the export say the same, on whatever day they run.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_hexdigest

from conf.errors import BadData, ConfigError, MissingInput
from conf.schema import DataConfig
from data_prep.rows.shipped import shipped_or_own
from data_prep.templates.prompts import jinja_for
from data_prep.tokenizer.tokenizer import Tokenizer

FOLDER = Path(__file__).resolve().parent / "shipped"
KEY = "data.chat_template"
DEFAULT = "chatml"
"""Of ``auto``, for a tokenizer that has none."""
CLOCK = "strftime_now"
ASKED = re.compile(CLOCK + r"\(\s*(['\"])(.*?)\1\s*\)")
"""A template's question for the date, with a format of strftime."""


def with_template(tokenizer: Tokenizer, data: DataConfig) -> Tokenizer:
    """The tokenizer with the chat template that ``data`` asks for, its date fixed.

    Raises MissingInput and BadData (data.chat_template), ConfigError (a date that cannot be fixed).
    """
    template = tokenizer.chat_template
    if data.chat_template == "auto":
        template = template or _read(DEFAULT, starts_with_bos=tokenizer.starts_with_bos)
    elif data.chat_template != "own":
        template = _read(data.chat_template, starts_with_bos=tokenizer.starts_with_bos)
    if template is not None and CLOCK in template:
        template = _dated(template, data.template_date or datetime.date.today().isoformat(), tokenizer.name)
    if template == tokenizer.chat_template:
        return tokenizer
    tokenizer.hf.chat_template = template
    return Tokenizer(tokenizer.hf, tokenizer.name)


def gives(tokenizer: Tokenizer, data: DataConfig, template: str | None) -> bool:
    """Whether ``with_template`` gives ``template``, the template of a corpus, on whatever day that was prepared."""
    asks = CLOCK in (tokenizer.chat_template or "")
    undated = data.template_date is None and (asks or data.chat_template not in ("own", "auto"))
    if undated and template is not None:
        return True  # the corpus has its own date in it; the config's part of the corpus's name says the rest
    return with_template(tokenizer, data).chat_template == template


def _read(name: str, *, starts_with_bos: bool) -> str | None:
    if name == "alpaca":
        return jinja_for("alpaca", starts_with_bos=starts_with_bos)
    if "/" not in name and not name.endswith(".jinja") and not (FOLDER / f"{name}.jinja").is_file():
        known = ", ".join(sorted(each.stem for each in FOLDER.glob("*.jinja")))
        raise MissingInput(f"{KEY}: {name} is no template; give own, auto, alpaca, {known} or a file FILE.jinja.")
    path = shipped_or_own(FOLDER, ".jinja", name, KEY)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadData(f"{KEY}: {path} is not UTF-8 text ({error}); save the file as UTF-8.") from error
    _check(text, path)
    return text


def _check(text: str, path: Path) -> None:
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(
            re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", text)  # transformers' own tag
        )
    except TemplateSyntaxError as error:
        raise BadData(f"{KEY}: {path}, line {error.lineno}: not a jinja template ({error.message}).") from error


def _dated(template: str, date: str, name: str) -> str:
    """The template with the date in the place of every question for it."""
    day = datetime.date.fromisoformat(date)
    dated = ASKED.sub(lambda found: repr(day.strftime(found[2])), template)
    # What is left only asks whether there is a clock: ``if strftime_now is defined``.
    if re.search(CLOCK + r"\s*\(", dated):
        raise ConfigError(
            f"data.template_date: the chat template of {name} asks for the date in a way that cannot be fixed "
            f"({CLOCK} without a plain format); give data.chat_template=FILE.jinja with a plain one"
        )
    return dated


def identity(data: DataConfig) -> dict[str, Any]:
    """Its part of the tokenizer's identity: absent where the tokenizer's own template is used as it is. JSON-able."""
    part: dict[str, Any] = {}
    if data.chat_template != "own":
        text = _read(DEFAULT if data.chat_template == "auto" else data.chat_template, starts_with_bos=False) or ""
        part["chat_template"] = f"{data.chat_template} {xxh3_64_hexdigest(text.encode())}"
    if data.template_date is not None:
        part["template_date"] = data.template_date
    return part
