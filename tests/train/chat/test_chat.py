"""Chat gives what ``generate`` gives on the same prompt; turns, streaming, one-shot on stdout, missing folders."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from conf.errors import BadData, ConfigError, MissingInput
from conf.safety.console import SafeConsole
from conf.safety.texts import for_terminal
from data_prep.rows.conversation import Conversation, Message
from data_prep.samples.encode import encode_prompt
from data_prep.tokenizer.tokenizer import load_tokenizer
from tests.tiny import tiny_model, tiny_tokenizer
from train.chat.__main__ import main, number
from train.chat.speaker import Speaker, Streamer, Talk, open_speaker, template_of

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
    tokenizer = load_tokenizer(str(folder))
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
    assert template_of(exported, load_tokenizer(str(exported))) == "alpaca"
    bare = load_tokenizer(str(tiny_tokenizer(tmp_path)))
    assert template_of(tmp_path, bare) == "plain"
    bare.hf.chat_template = CHAT_TEMPLATE
    assert template_of(tmp_path, bare) == "chat"


def test_what_the_template_cannot_hold_is_refused(exported: Path) -> None:
    speaker = open_speaker(exported, max_new_tokens=4, temperature=0.0)
    two_turns = [Message("user", "a"), Message("user", "c")]
    with pytest.raises(BadData, match="'alpaca' cannot hold this conversation"):
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
    tokenizer = load_tokenizer(str(exported))
    tokenizer.hf.chat_template = CHAT_TEMPLATE
    speaker = Speaker(AutoModelForCausalLM.from_pretrained(exported).eval(), tokenizer, "chat", max_new_tokens=8)
    shown = io.StringIO()
    talk = Talk(speaker, reader(["red cat", "", "big dog"]), SafeConsole(file=shown, width=200))
    talk.run()
    assert [message.role for message in talk.messages] == ["user", "assistant", "user", "assistant"]
    assert talk.messages[3].content == speaker.answer(talk.messages[:3])
    # What was streamed is what was remembered.
    answers = [talk.messages[1].content, talk.messages[3].content]
    assert "".join(shown.getvalue().split()) == "".join(for_terminal("".join(answers)).split())
    talk = Talk(
        speaker, reader(["red cat", "/reset", "/quit", "never read"]), SafeConsole(file=shown), system="Be brief."
    )
    talk.run()
    assert talk.messages == [Message("system", "Be brief.")]


def test_a_template_of_one_turn_starts_anew_each_time(exported: Path) -> None:
    speaker = open_speaker(exported, max_new_tokens=3, temperature=0.0)
    talk = Talk(speaker, reader(["red cat", "big dog"]), SafeConsole(file=io.StringIO()))
    talk.run()
    assert [message.content for message in talk.messages if message.role == "user"] == ["big dog"]


@pytest.mark.slow
def test_the_command_prints_only_the_answer(exported: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-m", "train.chat", f"model={exported}", "prompt=Say the last word.", "max_new_tokens=9"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answer = plain_answer(exported, [Message("user", "Say the last word.")], "alpaca", 9)
    assert done.stdout == for_terminal(answer) + "\n"


def test_an_answer_does_not_act_on_the_terminal(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = "\x1b[2J[red]x[/] \u202e \ttab"
    monkeypatch.setattr(Speaker, "answer", lambda self, messages, streamer=None: answer)
    monkeypatch.setattr(sys, "argv", ["chat", f"model={exported}", "prompt=x"])
    main()
    assert capsys.readouterr().out == "\\x1b[2J[red]x[/] \\u202e \ttab\n"
    stream = io.StringIO()
    streamer = Streamer(load_tokenizer(str(exported)), SafeConsole(file=stream, width=80))
    streamer.on_finalized_text(answer)
    assert stream.getvalue().startswith("\\x1b[2J[red]x[/] \\u202e")


def test_a_folder_without_a_model_is_named(tmp_path: Path, exported: Path) -> None:
    with pytest.raises(MissingInput, match=r"does not exist; give the folder that `python -m train\.export"):
        open_speaker(tmp_path / "nowhere", max_new_tokens=1, temperature=0.0)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "export").symlink_to(exported)
    with pytest.raises(MissingInput, match=f"contains no model; give model={run_dir}/export"):
        open_speaker(run_dir, max_new_tokens=1, temperature=0.0)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(BadData, match=r"config\.json cannot be used"):
        open_speaker(broken, max_new_tokens=1, temperature=0.0)


def test_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert number({}, "temperature", 0.0) == 0.0
    for wrong in ("hot", "-1", "nan", "inf"):
        with pytest.raises(ConfigError, match=f"temperature={wrong}: not a number"):
            number({"temperature": wrong}, "temperature", 0.0)
    monkeypatch.setattr(sys, "argv", ["chat", "prompt=hello"])
    with pytest.raises(ConfigError, match="model: missing"):
        main()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("corral.json", "", "corral.json cannot be used: "),
        ("corral.json", "[" * 100_000, "corral.json cannot be used: its values are nested too deeply"),
        ("corral.json", "[]", "corral.json cannot be used: it is no JSON object"),
        ("corral.json", "{}", "corral.json says template null, and there are alpaca, plain, chat; "),
        ("corral.json", '{"template": "plainx"}', "corral.json says template 'plainx', and there are"),
        ("generation_config.json", '{"eos_token_id": "x"}', "generation_config.json: eos_token_id cannot be 'x'"),
        ("generation_config.json", '{"eos_token_id": [0, 320]}', "eos_token_id cannot be [0, 320]"),
        ("generation_config.json", '{"eos_token_id": []}', "eos_token_id cannot be []"),
        ("generation_config.json", '{"pad_token_id": -1}', "pad_token_id cannot be -1"),
        ("generation_config.json", '{"temperature": "hot"}', "temperature cannot be 'hot'"),
        ("generation_config.json", '{"top_k": 1e9}', "top_k cannot be 1000000000.0"),
    ],
)
def test_a_strangers_folder_is_one_sentence(exported: Path, tmp_path: Path, name: str, content: str, said: str) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    (folder / name).write_text(content)
    with pytest.raises(BadData) as caught:
        open_speaker(folder, max_new_tokens=4, temperature=0.0)
    assert said in str(caught.value), caught.value
    assert str(caught.value).endswith("export the model again")


def test_of_a_strangers_generation_config_only_ends_and_sampling_count(exported: Path, tmp_path: Path) -> None:
    """transformers takes any value there, and fails on these in the middle of an answer."""
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    kept = {"eos_token_id": [0, 5], "top_k": 3, "top_p": 0.5, "temperature": 1}
    wild = {"output_hidden_states": [[]], "max_length": "x", "num_beams": 10**9, "stop_strings": ["a"]}
    (folder / "generation_config.json").write_text(json.dumps(kept | wild))
    speaker = open_speaker(folder, max_new_tokens=4, temperature=0.0)
    found = speaker.model.generation_config.to_dict()
    assert {key: found[key] for key in kept} == kept
    assert not any(found.get(key) == value for key, value in wild.items())
    assert isinstance(speaker.answer([Message("user", "Say red.")]), str)


def test_a_folder_that_lacks_weights_does_not_answer_at_random(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadData, match=r"lacks weights \(model\.layers\.1\.mlp\.up_proj\.weight\), which would have"):
        open_speaker(folder, max_new_tokens=4, temperature=0.0)


def test_a_config_without_its_sizes_is_not_built(exported: Path, tmp_path: Path) -> None:
    """transformers' defaults are a model of 6.7 billion weights, of which the folder has 50,000."""
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 320}))
    with pytest.raises(BadData, match=r"describes a model of 6,[\d,]+ weights, and the files .* bytes; give"):
        open_speaker(folder, max_new_tokens=4, temperature=0.0)
