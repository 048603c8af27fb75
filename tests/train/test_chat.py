"""Chat gives what ``generate`` gives on the same prompt; turns, streaming, one-shot on stdout, missing folders."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from conf.errors import BadData, ConfigError, MissingInput
from data_prep.chat import encode_prompt
from data_prep.conversation import Conversation, Message
from data_prep.tokenizer import load
from tests.tiny import tiny_model, tiny_tokenizer
from train.chat import Speaker, Talk, main, number, open_speaker, template_of

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``train.export`` writes it, with the Alpaca template."""
    folder = tiny_tokenizer(tmp_path_factory.mktemp("model"))
    model = tiny_model("llama", vocab_size=320, seed=4)
    model.config.eos_token_id, model.config.pad_token_id = 0, 1
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 0, 1
    model.save_pretrained(folder)
    (folder / "corral.json").write_text(json.dumps({"template": "alpaca"}))
    return folder


def plain_answer(folder: Path, messages: list[Message], template: str, tokens: int) -> str:
    tokenizer = load(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([encode_prompt(Conversation(tuple(messages)), template, tokenizer)])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(output[0, ids.shape[1] :].tolist()).strip()


def test_the_answer_is_that_of_generate(exported: Path) -> None:
    messages = [Message("user", "Repeat the words.", context="red cat runs")]
    speaker = open_speaker(exported, max_new_tokens=20, temperature=0.0)
    answer = speaker.answer(messages)
    assert answer
    assert answer == plain_answer(exported, messages, "alpaca", 20)
    assert speaker.answer(messages) == answer


def test_sampling_differs_with_the_seed_and_not_without(exported: Path) -> None:
    speaker = open_speaker(exported, max_new_tokens=20, temperature=1.5)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(speaker.answer([Message("user", "Say something.")]))
    assert found[0] == found[1] != found[2]


def test_templates(exported: Path, tmp_path: Path) -> None:
    assert template_of(exported, load(str(exported))) == "alpaca"
    bare = load(str(tiny_tokenizer(tmp_path)))
    assert template_of(tmp_path, bare) == "plain"
    bare.hf.chat_template = CHAT_TEMPLATE
    assert template_of(tmp_path, bare) == "chat"


def test_what_the_template_cannot_hold_is_refused(exported: Path) -> None:
    speaker = open_speaker(exported, max_new_tokens=4, temperature=0.0)
    two_turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    with pytest.raises(BadData, match="'alpaca' cannot hold this talk"):
        speaker.answer(two_turns)


def reader(lines: list[str]) -> Callable[[], str]:
    waiting: Iterator[str] = iter(lines)

    def read() -> str:
        line = next(waiting, None)
        if line is None:
            raise EOFError
        return line

    return read


def test_a_talk_remembers_its_turns_and_forgets_on_reset(exported: Path) -> None:
    tokenizer = load(str(exported))
    tokenizer.hf.chat_template = CHAT_TEMPLATE
    speaker = Speaker(AutoModelForCausalLM.from_pretrained(exported).eval(), tokenizer, "chat", max_new_tokens=8)
    shown = io.StringIO()
    talk = Talk(speaker, reader(["red cat", "", "big dog"]), Console(file=shown, width=200))
    talk.run()
    assert [message.role for message in talk.messages] == ["user", "assistant", "user", "assistant"]
    assert talk.messages[3].content == speaker.answer(talk.messages[:3])
    # What was streamed is what was remembered.
    answers = [talk.messages[1].content, talk.messages[3].content]
    assert "".join(shown.getvalue().split()) == "".join("".join(answers).split())
    talk = Talk(speaker, reader(["red cat", "/reset", "/quit", "never read"]), Console(file=shown), system="Be brief.")
    talk.run()
    assert talk.messages == [Message("system", "Be brief.")]


def test_a_template_of_one_turn_starts_anew_each_time(exported: Path) -> None:
    speaker = open_speaker(exported, max_new_tokens=3, temperature=0.0)
    talk = Talk(speaker, reader(["red cat", "big dog"]), Console(file=io.StringIO()))
    talk.run()
    assert [message.content for message in talk.messages if message.role == "user"] == ["big dog"]


@pytest.mark.slow
def test_the_command_prints_only_the_answer(exported: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "train.chat", f"model={exported}", "prompt=Say the last word.", "max_new_tokens=9"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == plain_answer(exported, [Message("user", "Say the last word.")], "alpaca", 9) + "\n"


def test_a_folder_without_a_model_is_named(tmp_path: Path, exported: Path) -> None:
    with pytest.raises(MissingInput, match=r"does not exist; give the folder that `python -m train\.export"):
        open_speaker(tmp_path / "nowhere", max_new_tokens=1, temperature=0.0)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "export").symlink_to(exported)
    with pytest.raises(MissingInput, match=f"holds no model; give model={run_dir}/export"):
        open_speaker(run_dir, max_new_tokens=1, temperature=0.0)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(MissingInput, match="cannot be loaded"):
        open_speaker(broken, max_new_tokens=1, temperature=0.0)


def test_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert number({}, "temperature", 0.0) == 0.0
    for wrong in ("hot", "-1", "nan", "inf"):
        with pytest.raises(ConfigError, match=f"temperature={wrong}: not a number"):
            number({"temperature": wrong}, "temperature", 0.0)
    monkeypatch.setattr(sys, "argv", ["chat", "prompt=hello"])
    with pytest.raises(ConfigError, match="model: missing"):
        main()
