"""Chat templates are programs of strangers: what hangs, grows or breaks out rejects its row, and the next goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from conf.foreign.limits import RENDER_SECONDS
from conf.foreign.reasons import LIMITS, REFUSES
from data_prep.rows.conversation import Rejected
from data_prep.tokenizer.renderer import Ask, Renderer

TURNS = [{"role": "user", "content": "Say red."}]
HONEST = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
SPECIALS = {"eos_token": "</s>"}


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    made = Renderer()
    yield made
    made._end()


def rendered(renderer: Renderer, template: str, count: int = 1) -> list[str | Rejected]:
    return renderer.texts(
        template, SPECIALS, [Ask([*TURNS, {"role": "user", "content": str(n)}]) for n in range(count)]
    )


BEYOND = {
    "a hang": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a flood": "{% for a in range(99999) %}{{ messages }}{% endfor %}",
    "a wide number": "{{ '%1000000000d' % 1 }}",
    "a wide format": "{{ '{:>1000000000}'.format(1) }}",
    "a long text": "{{ 'x' * 10**9 }}",
    "a large power": "{{ 9 ** (9 ** 9) }}",
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_goes_beyond_the_limits_is_rejected_and_the_next_is_rendered(renderer: Renderer, name: str) -> None:
    (honest,) = rendered(renderer, HONEST)
    assert honest == "<user>Say red.<user>0"
    assert renderer._process is not None
    before, start = psutil.Process(renderer._process.pid), time.process_time()
    (found,) = rendered(renderer, BEYOND[name])
    assert isinstance(found, Rejected)
    assert found.reason == LIMITS, found.detail
    assert time.process_time() - start < RENDER_SECONDS
    assert not before.is_running() or before.memory_info().rss < 1 << 30
    assert rendered(renderer, HONEST) == [honest]


def test_one_that_hangs_takes_none_of_its_neighbours(renderer: Renderer) -> None:
    template = "{% if messages[1]['content'] == '2' %}" + BEYOND["a hang"] + "{% endif %}" + HONEST
    found = rendered(renderer, template, 4)
    assert [each.reason if isinstance(each, Rejected) else each[-1] for each in found] == ["0", "1", LIMITS, "3"]


OUT = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['__builtins__'].open('MARK', 'w') }}",
    "{{ strftime_now.__globals__ }}",
    "{% include 'MARK' %}",
    "{% import 'os' as os %}{{ os.system('touch MARK') }}",
    "{{ ('%s' | format).__globals__ }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
)


@pytest.mark.parametrize("template", OUT)
def test_nothing_breaks_out(renderer: Renderer, template: str, tmp_path: Path) -> None:
    (found,) = rendered(renderer, template.replace("MARK", str(tmp_path / "mark")))
    assert isinstance(found, Rejected) or not found, found
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for", "nexpected"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ nothing.of.this }}", "undefined"),
        ("{{ '\\ud800' }}", "half of a character"),
        ("\ud800", "half of a character"),
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "recursion"),
        ("{{ messages[1] / 2 }}", "unsupported operand"),
    ],
)
def test_its_error_is_the_reason(renderer: Renderer, template: str, said: str) -> None:
    (found,) = rendered(renderer, template)
    assert isinstance(found, Rejected), found
    assert found.reason == REFUSES
    assert said in found.detail


def test_the_process_has_no_secrets_and_ends_with_its_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "planted-5d1")
    own = Renderer()
    assert rendered(own, HONEST) == ["<user>Say red.<user>0"]
    assert own._process is not None
    process = psutil.Process(own._process.pid)
    assert "planted-5d1" not in repr(process.environ())
    assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    assert process.pid != os.getpid()
    own._end()
    assert not process.is_running()
