"""From the command line to the config: overrides, the user's own groups, frozen configs, help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.compose import ROOT, compose, config_from_argv, load_config
from conf.errors import ConfigError, MissingInput, describe


def problems(*overrides: str, config_dir: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, config_dir)
    return caught.value.problems


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


# -- overrides ---------------------------------------------------------------------------------------------------


def test_sources_can_be_added_changed_and_taken_away() -> None:
    cfg = compose(
        [
            "data=alpaca",
            "+data.sources.mine={format: messages, path: data/*.jsonl, rate: {cap: 10, temperature: 2}}",
            "data.sources.mine.rows=5",
            "~data.sources.alpaca",
        ]
    )
    (mine,) = cfg.data.sources.values()
    assert (mine.format, mine.path, mine.rows) == ("messages", "data/*.jsonl", 5)
    assert mine.rate is not None
    assert (mine.rate.cap, mine.rate.temperature) == (10, 2.0)


def test_nested_sources_from_the_command_line() -> None:
    cfg = compose(
        ["+data.sources.cot={weight: 2, sources: {gsm8k: {format: alpaca, path: a}}}", "data.sources.words.weight=1"]
    )
    assert cfg.data.sources["cot"].sources is not None
    assert cfg.data.sources["cot"].sources["gsm8k"].path == "a"


def test_experiment_debug_and_overrides_win_in_this_order() -> None:
    assert compose(["experiment=demo"]).schedule.max_steps > 7
    assert compose(["debug=fast", "experiment=demo"]).schedule.max_steps == 3
    assert compose(["schedule.max_steps=7", "debug=fast", "experiment=demo"]).schedule.max_steps == 7
    assert compose(["experiment=demo", "tuning=lora", "zero=3"]).tuning.method == "lora"


def test_several_debug_entries_and_a_group_taken_away() -> None:
    both = compose(["debug=[fast,deterministic]"])
    assert both.compute.deterministic
    assert both.schedule.max_steps == 3
    assert compose(["debug=fast", "~experiment"]).schedule.max_steps == 3
    assert compose(["+experiment=demo"]).name == "demo"


def test_run_dir_follows_the_name() -> None:
    assert compose(["name=mine"]).run_dir == "outputs/mine"
    assert compose(["name=mine", "run_dir=/x/${name}-${seed}", "seed=3"]).run_dir == "/x/mine-3"


@pytest.mark.parametrize("text", ["1e3", "2024", "007", "1_000", "0x1f", "3.10"])
def test_text_that_looks_like_a_number_stays_as_typed(text: str) -> None:
    cfg = compose([f"name={text}", f"model.path={text}", f"data.sources.words.path={text}", f"tracker.project={text}"])
    assert {cfg.name, cfg.model.path, cfg.data.sources["words"].path, cfg.tracker.project} == {text}
    assert cfg.run_dir == f"outputs/{text}"


@pytest.mark.parametrize(
    "text", ["a b", "it's", 'a "b" c', "(x), [y] {z}", "a=b", "back\\slash", "ünï", "#5", "  edge  "]
)
def test_quoted_text_survives_byte_for_byte(text: str) -> None:
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if "\\" not in text else f'"{text}"'
    assert compose([f"data.sources.words.path={quoted}"]).data.sources["words"].path == text


def test_numbers_where_numbers_are_wanted() -> None:
    cfg = compose(["optim.lr=1e-5", "optim.clip=1", "seed=12"])
    assert (cfg.optim.lr, cfg.optim.clip, cfg.seed) == (1e-5, 1.0, 12)


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["experiment=alpca"], "experiment=alpca: no such entry; did you mean experiment=alpaca"),
        (["model=gtp2"], "model=gtp2: no such entry; did you mean model=gpt2?"),
        (["zero=4"], "zero=4: no such entry"),
        (["modle=gpt2"], "modle: unknown key; did you mean model?"),
        (["modle.path=x"], "modle: unknown key; did you mean model?"),
        (["zero=1,2"], "zero=1,2: only sweeps take several values"),
        (["seed"], "seed: not KEY=VALUE"),
        (["data.prepared=a(1)"], "quote it twice: 'data.prepared=\"a(1)\"'"),
        (["~data.sources.alpcaa", "data=alpaca"], "did you mean ~data.sources.alpaca?"),
        (["+data.sources.words={path: x}"], "remove the + to change it"),
        (["name=${nmae}"], "name: ${nmae} cannot be resolved: there is no setting nmae; did you mean ${name}?"),
        (
            ["run_dir=${oc.env:CORRAL_NO_SUCH_VARIABLE}"],
            "the environment variable CORRAL_NO_SUCH_VARIABLE is not set; set it, or name a default",
        ),
        (["run_dir="], "run_dir: empty"),
        (["data.seq_len=???"], "data.seq_len: it has no value; set it with data.seq_len=VALUE"),
        (["data@x=alpaca"], "a package (@) is not allowed here"),
        (["hydra.run.dir=x"], "hydra: unknown key"),
        (["seed.x=1"], "seed"),
        (["optim.betas.7=0.5"], "optim.betas"),
        (["~tuning"], "tuning: missing"),
    ],
)
def test_one_sentence_for_each_mistake(overrides: list[str], expected: str) -> None:
    (line,) = problems(*overrides)
    assert expected in line
    assert "\n" not in line


def test_mistakes_in_groups_and_in_values_are_collected() -> None:
    assert len(problems("experiment=x", "model=y", "data=z")) == 3
    assert len(problems("optim.lrr=1", "data.seqlen=2", "seed=-1", "zero.offload=all")) == 4


def outcome(argv: list[str]) -> tuple[str, int]:
    """What a user gets from a command line: the text of the mistake (or nothing) and the exit code."""
    try:
        config_from_argv(argv, command="data_prep", extra={"rows": "how many"})
    except (ConfigError, MissingInput) as error:
        return describe(error), error.code
    except SystemExit as left:
        return "", int(left.code or 0)
    return "", 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=25), max_size=3))
def test_no_command_line_gives_a_traceback(words: list[str]) -> None:
    text, code = outcome(words)
    assert code in (0, 66, 78)
    assert text.startswith("corral: ") == (code != 0)


KEYS = [
    "optim.lr",
    "data.sources.words.path",
    "zero",
    "model",
    "data.stop",
    "name",
    "+data.sources.x",
    "~data.sources.words",
]
VALUES = st.one_of(
    st.text(max_size=12), st.sampled_from(["{", "[1,2]", "{a: 1}", "null", "${x}", "${", "1e999", "nan", "-inf"])
)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.sampled_from(KEYS), VALUES)
def test_no_value_gives_a_traceback(key: str, value: str) -> None:
    text, code = outcome([f"{key}={value}"])
    assert code in (0, 78)
    assert text.startswith("corral: ") == (code != 0)


# -- the user's own groups ---------------------------------------------------------------------------------------


def test_own_entries_beside_the_shipped_ones(tmp_path: Path) -> None:
    folder = written(
        tmp_path / "my confs", "data/mine.yaml", "sources: {a: {format: alpaca, path: a.json}}\nstop: {epochs: 1}\n"
    )
    written(
        folder,
        "experiment/x.yaml",
        "# @package _global_\ndefaults: [{override /data: mine}, {override /zero: '3'}]\nname: x\n",
    )
    cfg = compose(["experiment=x", "tuning=lora"], folder)
    assert (cfg.name, list(cfg.data.sources), cfg.zero.stage, cfg.tuning.method) == ("x", ["a"], 3, "lora")
    assert compose(["data=mine"], folder).data.stop.epochs == 1.0


def test_of_two_entries_with_one_name_the_users_wins(tmp_path: Path) -> None:
    written(tmp_path, "optim/adamw.yaml", "lr: 0.5\n")
    assert compose([], tmp_path).optim.lr == 0.5


def test_a_group_of_the_users_own(tmp_path: Path) -> None:
    written(tmp_path, "site/here.yaml", "# @package _global_\ncluster: {partition: big}\n")
    assert compose(["site=here"], tmp_path).cluster.partition == "big"


@pytest.mark.parametrize(
    ("name", "text", "choice", "expected"),
    [
        (
            "data/a.yaml",
            "stop: {epochs: 1}\nsources: {a: {format: alpaca, path: x}}\npack: no\n",
            "data=a",
            "no/off/false as a boolean",
        ),
        ("tracker/a.yaml", "wandb: off\n", "tracker=a", "tracker.wandb: got false (boolean)"),
        ("optim/a.yaml", "lr: '1e-3'\n", "optim=a", "it arrived as text: write 0.001 without quotes"),
        (
            "cluster/a.yaml",
            "time: 12:00:00\n",
            "cluster=a",
            "cluster.time: got 43200 (integer); allowed: text, or null; yaml reads",
        ),
        ("data/a.yaml", "stop: {epochs: 1}\n", "data=a", "data.sources: missing; it needs a mapping"),
        ("experiment/a.yaml", "name: x\n", "experiment=a", "must begin with the line '# @package _global_'"),
        ("optim/a.yaml", "lr: [1\n", "optim=a", "a yaml file cannot be read: "),
        ("optim/a.yaml", "lr: 1\nlr: 2\n", "optim=a", "a yaml file cannot be read: "),
        ("optim/a.yaml", "- 1\n", "optim=a", "optim: got [1] (list); allowed: a mapping with the keys"),
        ("experiment/a.yaml", "# @package _global_\ndefaults: [{override /data: nope}]\n", "experiment=a", "data/nope"),
    ],
)
def test_mistakes_in_the_users_yaml(tmp_path: Path, name: str, text: str, choice: str, expected: str) -> None:
    (line,) = problems(choice, config_dir=written(tmp_path, name, text))
    assert expected in line
    assert "\n" not in line


def test_a_broken_yaml_is_named(tmp_path: Path) -> None:
    (line,) = problems("optim=a", config_dir=written(tmp_path, "optim/a.yaml", "name: adamw\nlr: [1\n"))
    assert f'"{tmp_path}/optim/a.yaml", line' in line


def test_a_config_dir_that_is_not_there_or_has_a_root(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"--config-dir: .*nowhere is not a folder"):
        compose([], tmp_path / "nowhere")
    (line,) = problems(config_dir=written(tmp_path, "config.yaml", "name: x\n"))
    assert "would replace Corral's root" in line


# -- the command's arguments -------------------------------------------------------------------------------------


def test_own_keys_are_split_off_untouched(tmp_path: Path) -> None:
    argv = ["experiment=demo", "rows=3", "prompt=it's [a, b={c}", "--config-dir", str(tmp_path), "zero=1"]
    cfg, own = config_from_argv(argv, command="data_prep.preview", extra={"rows": "rows", "prompt": "text"})
    assert own == {"rows": "3", "prompt": "it's [a, b={c}"}
    assert cfg.zero.stage == 1


def test_cfg_job_prints_yaml_that_composes_to_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        config_from_argv(["experiment=demo", "name=1e3", "--cfg", "job"], command="train")
    assert left.value.code == 0
    (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "run.yaml") == compose(["experiment=demo", "name=1e3"])


def test_help_names_groups_keys_and_examples(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    written(tmp_path, "data/mine.yaml", "")
    with pytest.raises(SystemExit):
        config_from_argv(
            ["--help", "--config-dir", str(tmp_path)], command="data_prep", extra={"rows": "how many rows"}
        )
    text = capsys.readouterr().out
    for part in ("usage: python -m data_prep", "how many rows", "alpaca_gpt2_full", "mine", "--cfg job", "examples:"):
        assert part in text
    assert max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--confg-dir", "x"], "--confg-dir: unknown option; did you mean --config-dir?"),
        (["--cfg", "all"], "--cfg: got 'all'; allowed: job"),
        (["--config-dir"], "--config-dir: needs a folder"),
        (["rwos=3"], "rwos: unknown key; did you mean rows?"),
    ],
)
def test_mistyped_options_and_own_keys(argv: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_argv(argv, command="data_prep.preview", extra={"rows": "how many", "html": "file"})
    assert expected in str(caught.value)


def test_only_compose_loads_hydra() -> None:
    code = "import sys, conf.schema, conf.frozen, conf.command; sys.exit(bool({'hydra', 'omegaconf'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("data_prep", "usage: python -m data_prep "),
        ("launch plan", "usage: python -m launch plan "),
        ("torchrun --nproc-per-node=N -m train", "usage: torchrun --nproc-per-node=N -m train "),
    ],
)
def test_help_shows_how_the_command_is_started(command: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        config_from_argv(["--help"], command=command)
    assert capsys.readouterr().out.startswith(shown)


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = "from conf.compose import config_from_argv; config_from_argv(['--help'], command='x')"
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | true; exit "${PIPESTATUS[0]}"', sys.executable, code],
        cwd=ROOT.parent, timeout=60, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
