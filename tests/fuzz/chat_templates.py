"""Chat templates, which are programs of whoever published them: damaged ones, and ones that mean harm."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from tests.data_prep.made import CHATML, LLAMA2, LLAMA3, byte_tokenizer
from tests.fuzz import mutations, rows
from tests.fuzz.target import Target

HARM = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ '%1000000000d' % 1 }}",
    "{% for a in range(99999) %}{{ messages }}{% endfor %}",
    "{{ 'x' * 10**9 }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('id') }}",
    "{{ self._TemplateReference__context }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ raise_exception('\x1b[2J\ud800') }}",
    "{{ raise_exception(messages) }}",
    "{{ strftime_now('%Y') }}",
    "{{ messages | tojson(indent=100000) }}",
    "{{ messages[99] }}",
    "{{ 1 // 0 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ undefined.x.y }}",
    "{% set x = namespace(a=[]) %}{% for a in range(9) %}{% set x.a = [x.a, x.a] %}{% endfor %}{{ x.a }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% generation %}",
    "{{ messages | map(attribute='content') | sum(start=10**400) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{% set _ = messages.append(1) %}{% set _ = messages[0].clear() %}",
    "{{ messages | sort | groupby('x') | list }}",
    "{{ lipsum(n=10000) }}",
    "\ud800",
    "\x00",
)


def make(folder: Path) -> None:
    byte_tokenizer(folder / "made", specials=["<|im_start|>", "<|im_end|>", "<|eot_id|>"], template=CHATML).save(
        folder / "tokenizer"
    )
    for name in rows.CHAT:
        (folder / f"{name}.jsonl").write_text((json.dumps(rows.ROWS[name]) + "\n") * 3)
    plain = {"messages": [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "red"}]}
    (folder / "messages.jsonl").write_text((json.dumps(plain) + "\n") * 3)


def damage(rng: Random, folder: Path) -> str:
    text = rng.choice([CHATML, LLAMA2, LLAMA3])
    match rng.randrange(3):
        case 0:
            text = mutations.bytes_of(rng, text.encode()).decode("utf-8", "surrogateescape")
        case 1:
            at = rng.choice([0, len(text), text.index("%}") + 2])
            text = text[:at] + rng.choice(HARM) + text[at:]
        case _:
            parts = text.split("{%")
            first, second = rng.randrange(len(parts)), rng.randrange(len(parts))
            parts[first] = parts[second] + rng.choice(["", *mutations.TEXTS, *HARM])
            text = "{%".join(parts)
    settings = folder / "tokenizer" / "tokenizer_config.json"
    (folder / "tokenizer" / "chat_template.jinja").unlink(missing_ok=True)
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": text}))
    (folder / "which").write_text(f"{rng.choice(rows.CHAT)}.jsonl")
    return f"{(folder / 'which').read_text()}, {text!r}"


TARGETS = (Target("template", make, damage, rows.read),)
