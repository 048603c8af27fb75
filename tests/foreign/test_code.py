"""No code of a stranger's folder runs without the word, whatever is on standard input; with it, it runs and says so."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conf.compose import compose, config_of_run
from conf.errors import BadData, ConfigError
from conf.foreign import code
from conf.frozen import load_config, save_config
from conf.schema import ModelConfig
from data_prep.tokenizer.tokenizer import load_tokenizer
from launch.torchrun import child_environment
from tests.end_to_end.commands import train
from tests.foreign.folders import VOCAB, changed, honest, with_code
from tests.tiny import tiny_alpaca
from train.export.exported import load_model
from train.loading.pretrained import read_config, read_model
from train.verify.shrink import shrunken

ROOT = Path(__file__).parents[2]


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file in which foreign code says that it ran. Whoever is asked to run some here says yes."""
    monkeypatch.setenv("CORRAL_TEST_MARK", str(tmp_path / "mark"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    for name in [each for each in sys.modules if each.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    code.say_that_it_runs.cache_clear()
    return tmp_path / "mark"


def ran(mark: Path) -> set[str]:
    return set(mark.read_text().split()) if mark.is_file() else set()


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return honest(tmp_path_factory.mktemp("honest"))


@pytest.fixture
def model(plain: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    subprocess.run(["cp", "-r", plain, folder], check=True)
    return folder


def test_a_tokenizer_with_code(model: Path, mark: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with_code(model, kind="foreign")
    with pytest.raises(ConfigError, match=r"model\.trust_remote_code: .* cannot be loaded without code .*set model\."):
        load_tokenizer(str(model))
    assert not ran(mark)
    capfd.readouterr()
    trusted = load_tokenizer(str(model), trust_remote_code=True)
    assert ran(mark) == {"configuration_foreign", "tokenization_foreign"}
    assert capfd.readouterr().err.count(f"corral: model.trust_remote_code: code of {model} runs here: ") == 1
    trusted.save(model.parent / "saved")
    mark.unlink()
    saved = load_tokenizer(str(model.parent / "saved"))  # a corpus's copy asks for no code
    assert saved.fingerprint == trusted.fingerprint
    assert not ran(mark)
    assert not list((model.parent / "saved").glob("*.py"))


def test_a_model_with_code_of_a_known_family(model: Path, mark: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """transformers' own class is used, and an export of it promises no code."""
    with_code(model)
    config = read_config(model, key="model.path", trust_remote_code=False)
    found = read_model(model, config, key="model.path", trust_remote_code=False)
    assert not ran(mark)
    assert type(found).__module__ == "transformers.models.llama.modeling_llama"
    found.save_pretrained(model.parent / "again")
    assert "auto_map" not in json.loads((model.parent / "again" / "config.json").read_text())
    assert type(load_model(model)).__name__ == "LlamaForCausalLM"
    assert shrunken(ModelConfig(path=str(model)))["model_type"] == "llama"
    assert not ran(mark)
    capfd.readouterr()
    own = load_model(model, trust_remote_code=True)
    assert type(own).__name__ == "ForeignForCausalLM"
    assert ran(mark) == {"configuration_foreign", "modeling_foreign", "generate"}
    said = capfd.readouterr().err
    assert said.count("corral: model.trust_remote_code") == 1
    assert (
        "configuration_foreign.ForeignConfig, custom_generate/generate.py, modeling_foreign.ForeignForCausalLM" in said
    )


def test_a_config_may_name_no_kernel_of_the_hub(model: Path) -> None:
    changed(model / "config.json", attn_implementation="someone/kernel")
    assert read_config(model, key="model.path", trust_remote_code=False)._attn_implementation is None


def test_a_run_folder_does_not_speak_for_its_reader(tmp_path: Path) -> None:
    """run.yaml says that the run trusted its base; a command on the run wants the word again."""
    cfg = compose(["model.path=x", "model.config=null", "model.init=pretrained", "model.trust_remote_code=true"])
    save_config(cfg, tmp_path / "run.yaml")
    assert load_config(tmp_path / "run.yaml").model.trust_remote_code
    for word in (False, True):
        more = ["model.trust_remote_code=true"] if word else []
        asked, _ = config_of_run([f"run_dir={tmp_path}", *more], command="train.export", sections=("model",))
        assert asked.model.trust_remote_code is word


class Bomb:
    """Pickled, it is a call that writes the mark."""

    def __reduce__(self) -> Any:
        return (os.system, (f"echo pickle >> {os.environ['CORRAL_TEST_MARK']}",))


@pytest.mark.parametrize("legacy", [True, False])
def test_pickled_weights_are_data_or_refused(model: Path, mark: Path, legacy: bool) -> None:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    config = read_config(model, key="model.path", trust_remote_code=False)
    found = read_model(model, config, key="model.path", trust_remote_code=False)
    assert torch.equal(found.state_dict()["model.norm.weight"], weights["model.norm.weight"])
    torch.save({**weights, "bomb": Bomb()}, model / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    for content in (None, pickle.dumps(Bomb())):
        if content is not None:
            (model / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(
            BadData, match=r"model\.path: the weights in .* give the model as \*\.safetensors"
        ) as refused:
            read_model(model, config, key="model.path", trust_remote_code=False)
        assert "weights_only=False" not in str(refused.value)  # torch's own advice is to run it
        assert not ran(mark)


def test_adapters_may_name_no_module(model: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT imports what megatron_core names."""
    from peft import LoraConfig, get_peft_model

    folder = model.parent / "adapter"
    base = read_model(model, None, key="model", trust_remote_code=False)
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(folder)
    changed(folder / "adapter_config.json", base_model_name_or_path=str(model))
    load_model(folder)
    (model.parent / "foreign_core.py").write_text(f"open({str(mark)!r}, 'a').write('core')")
    monkeypatch.syspath_prepend(str(model.parent))
    changed(folder / "adapter_config.json", megatron_config={"a": 1}, megatron_core="foreign_core")
    with pytest.raises(BadData, match=r"adapter_config\.json asks for a module of its own \(megatron_core\)"):
        load_model(folder)
    assert not ran(mark)


def test_adapters_with_a_base_with_code(model: Path, mark: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder = model.parent / "adapter"
    base = read_model(model, None, key="model", trust_remote_code=False)
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(folder)
    changed(folder / "adapter_config.json", base_model_name_or_path=str(model), auto_mapping={"parent_library": "os"})
    with_code(model, kind="foreign")
    with pytest.raises(ConfigError, match="cannot be loaded without code"):
        load_model(folder)
    assert not ran(mark)


YAMLS = [
    "name: !!python/object/apply:os.system ['touch {mark}']",
    "name: !!python/name:os.system",
    "name: !!python/object/new:subprocess.Popen [[touch, '{mark}']]",
    "model: {{config: {{_target_: os.system, command: 'touch {mark}'}}}}",
    "_target_: os.system\ncommand: touch {mark}",
    "name: ${{oc.create:{{_target_: os.system}}}}",
    "hydra: {{callbacks: {{x: {{_target_: os.system}}}}}}",
]


@pytest.mark.parametrize("text", YAMLS)
def test_yaml_runs_nothing(text: str, tmp_path: Path, mark: Path) -> None:
    (tmp_path / "experiment").mkdir()
    written = text.format(mark=mark)
    (tmp_path / "experiment" / "foreign.yaml").write_text(f"# @package _global_\n{written}\n")
    if "hydra:" in text:  # a section that is Hydra's own, which is never looked at
        assert compose(["experiment=foreign"], tmp_path)
    else:
        with pytest.raises(ConfigError):
            compose(["experiment=foreign"], tmp_path)
    (tmp_path / "run.yaml").write_text(f"{written}\n")
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(tmp_path / "run.yaml")
    assert not mark.exists()


def run(module: str, *arguments: str, stdin: str = "yes") -> subprocess.CompletedProcess[str]:
    """A real process. ``stdin``: yes answers y for ever, closed is none, any other text is piped."""
    before = {"yes": "yes | ", "closed": ""}.get(stdin, f"printf {stdin!r} | ")
    line = f'{before}"$@"{" <&-" if stdin == "closed" else ""}'
    command = ["bash", "-c", line, "bash", sys.executable, "-m", module, *arguments]
    environment = {**os.environ, **child_environment(1)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def settings(folder: Path, tmp_path: Path, *more: str) -> list[str]:
    rows = tiny_alpaca(tmp_path / "rows.json")
    return [
        "data=own", f"path={rows}", f"model.path={folder}", "model.dtype=fp32", "data.seq_len=256", "name=tiny",
        f"run_dir={tmp_path / 'run'}", f"data.prepared={tmp_path / 'corpus'}", "tracker.wandb=disabled",
        "batch.global_size=4", "schedule.max_steps=1", "evaluation.generate_rows=0", *more,
    ]  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert done.returncode == 78, done.stderr[-3000:]
    assert f"corral: model.trust_remote_code: {folder} cannot be loaded without code" in done.stderr
    assert "Traceback" not in done.stderr
    assert "[y/N]" not in done.stdout + done.stderr


def test_yes_runs_no_code(model: Path, tmp_path: Path, mark: Path) -> None:
    refused(run("data_prep.preview", *settings(with_code(model, kind="foreign"), tmp_path)), model)
    assert not ran(mark)


@pytest.mark.slow
@pytest.mark.parametrize("stdin", ["yes", "y\\n", "closed"])
@pytest.mark.parametrize("module", ["data_prep", "data_prep.preview", "launch", "train.chat"])
def test_no_standard_input_runs_code(model: Path, tmp_path: Path, mark: Path, module: str, stdin: str) -> None:
    with_code(model, kind="foreign")
    arguments = [f"model={model}", "prompt=x"] if module == "train.chat" else settings(model, tmp_path)
    done = run(module, *arguments, stdin=stdin)
    assert not ran(mark)
    refused(done, model)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_trusts_only_by_word_and_records_it(model: Path, tmp_path: Path, mark: Path, world: int) -> None:
    """Prepared, tuned, evaluated, exported, talked to: without the word nothing runs, with it each says so."""
    with_code(model, tokenizer=False)  # a tokenizer with a class of its own is refused without the word
    arguments = settings(model, tmp_path, "evaluation.max_rows=4", "zero=2", "+data.clean.duplicate=false")
    prepared = run("data_prep", *arguments)
    assert prepared.returncode == 0, prepared.stderr
    assert run("train.verify", *arguments).returncode == 0
    ended, output = train(world, *arguments)
    assert ended == 0, output
    assert not ran(mark)
    run_dir = tmp_path / "run"
    note = f"{model} brings code of its own (configuration_foreign.ForeignConfig, "
    assert note in output
    assert not [each for each in events(run_dir) if each["kind"] == "foreign_code"]

    trusted = [f"run_dir={tmp_path / 'trusted'}", "model.trust_remote_code=true"]
    changed_word, output = train(world, *arguments, "model.trust_remote_code=true")
    assert changed_word, output
    assert "model.trust_remote_code: false -> true (the steps to come are computed by other code)" in output
    ended, output = train(world, *arguments, *trusted)
    assert ended == 0, output
    assert {"configuration_foreign", "modeling_foreign"} <= ran(mark)
    assert f"corral: model.trust_remote_code: code of {model} runs here" in output
    (event,) = [each for each in events(tmp_path / "trusted") if each["kind"] == "foreign_code"]
    assert "modeling_foreign.ForeignForCausalLM" in event["code"]
    assert load_config(tmp_path / "trusted" / "run.yaml").model.trust_remote_code
    mark.unlink()
    for module in ("train.evaluate", "train.export"):
        done = run(module, trusted[0])
        assert done.returncode == 0, done.stderr
        assert not ran(mark)
    assert "| code |" not in (tmp_path / "trusted" / "export" / "README.md").read_text()
    done = run("train.export", *trusted)
    assert done.returncode == 0, done.stderr
    assert "code of" in done.stderr
    card = (tmp_path / "trusted" / "export" / "README.md").read_text()
    assert "| code | configuration_foreign.ForeignConfig, " in card
    mark.unlink()
    exported = f"model={tmp_path / 'trusted' / 'export'}"
    done = run("train.chat", exported, "prompt=x", "max_new_tokens=1")
    assert done.returncode == 0, done.stderr
    assert not ran(mark)
    assert run("train.chat", exported, "prompt=x", "max_new_tokens=1", "trust_remote_code=true").returncode == 0
    assert "modeling_foreign" in ran(mark)


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]


def test_the_fixture_is_whole(model: Path) -> None:
    """Without code in it, the folder loads: what is refused above is the code."""
    assert load_tokenizer(str(model)).vocab_size <= VOCAB
    load_model(model)
