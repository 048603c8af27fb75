"""Every way to name a source, and which sources a run then has: own ones never meet the default entry's."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.compose import compose, config_from_argv
from conf.errors import ConfigError

MINE = "{format: alpaca, path: a.jsonl}"
EXPERIMENTS = {
    "own": f"data: {{sources: {{mine: {MINE}}}}}",
    "own_two": f"data: {{seq_len: 64, stop: {{epochs: 9}}, sources: {{mine: {MINE}, other: {MINE}}}}}",
    "own_tree": f"data: {{sources: {{mix: {{sources: {{a: {MINE}, b: {MINE}}}}}}}}}",
    "own_unset": "data: {sources: {mine: {format: alpaca, path: '???'}}}",
    "own_half": "data: {sources: {mine: {format: alpaca}}}",
    "same_name": "data: {sources: {words: {format: sharegpt, path: a.jsonl}}}",
    "changes": "data: {sources: {words: {weight: 2}}}",
    "own_and_change": f"data: {{sources: {{mine: {MINE}, words: {{weight: 2}}}}}}",
    "names_alpaca": f"defaults: [{{override /data: alpaca}}]\ndata: {{sources: {{mine: {MINE}}}}}",
    "names_demo": f"defaults: [{{override /data: demo}}]\ndata: {{sources: {{mine: {MINE}}}}}",
    "names_entry": "defaults: [{override /data: entry}]",
    "nothing": "seed: 3",
}
ENTRIES = {
    "entry": f"sources: {{mine: {MINE}}}\nstop: {{epochs: 1}}",
    "on_alpaca": f"defaults: [alpaca, _self_]\nsources: {{mine: {MINE}}}",
}
ADD, SET = f"+data.sources.mine={MINE}", f"data.sources={{mine: {MINE}}}"

WAYS: list[tuple[list[str], list[str]]] = [
    # nothing of one's own
    ([], ["words"]),
    (["data=alpaca"], ["alpaca"]),
    (["experiment=nothing"], ["words"]),
    (["data.sources.words.path=x"], ["words"]),
    (["data.sources.words.weight=2", "data.sources.words.rows=5"], ["words"]),
    (["experiment=changes"], ["words"]),
    # own sources, and no entry named: the default entry is left out
    ([ADD], ["mine"]),
    ([SET], ["mine"]),
    ([f"+data.sources={{mine: {MINE}}}"], ["mine"]),
    ([f"data.sources.mine={MINE}"], ["mine"]),
    ([f"++data.sources.mine={MINE}"], ["mine"]),
    (["+data.sources.mine.format=alpaca", "+data.sources.mine.path=a.jsonl"], ["mine"]),
    ([f"data={{sources: {{mine: {MINE}}}}}"], ["mine"]),
    ([ADD, f"+data.sources.other={MINE}"], ["mine", "other"]),
    ([f"+data.sources.mix={{sources: {{a: {MINE}, b: {MINE}}}}}"], ["mix"]),
    (["~data.sources.words", ADD], ["mine"]),
    ([ADD, "~data.sources.words"], ["mine"]),
    (["~data.sources", f"+data.sources={{mine: {MINE}}}"], ["mine"]),
    ([ADD, "data.sources.words.weight=1"], ["mine", "words"]),
    (["experiment=own"], ["mine"]),
    (["experiment=own_two"], ["mine", "other"]),
    (["experiment=own_tree"], ["mix"]),
    (["experiment=own_unset", "data.sources.mine.path=x"], ["mine"]),
    (["experiment=own_half", "data.sources.mine.path=x"], ["mine"]),
    (["experiment=own", f"+data.sources.other={MINE}"], ["mine", "other"]),
    (["experiment=own", f"data.sources={{other: {MINE}}}"], ["other"]),
    (["experiment=same_name"], ["words"]),
    (["experiment=own_and_change"], ["mine", "words"]),
    # an entry that somebody named: + adds, = says which there are
    (["data=demo", ADD], ["words", "mine"]),
    (["data=alpaca", ADD], ["alpaca", "mine"]),
    (["data=alpaca", f"+data.sources={{mine: {MINE}}}"], ["alpaca", "mine"]),
    (["data=alpaca", f"data.sources.mine={MINE}"], ["alpaca", "mine"]),
    (["data=alpaca", SET], ["mine"]),
    (["data=alpaca_dolly", "data.sources={dolly: {weight: 2}}"], ["dolly"]),
    (["data=alpaca", "experiment=own"], ["alpaca", "mine"]),
    (["experiment=names_alpaca"], ["alpaca", "mine"]),
    (["experiment=names_demo"], ["words", "mine"]),
    (["experiment=names_entry"], ["mine"]),
    (["data=entry"], ["mine"]),
    (["data=entry", f"+data.sources.other={MINE}"], ["mine", "other"]),
    (["data=on_alpaca"], ["alpaca", "mine"]),
    (["data=alpaca", "~data.sources.alpaca", ADD], ["mine"]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's own groups."""
    root = tmp_path_factory.mktemp("groups")
    for group, entries, head in (("experiment", EXPERIMENTS, "# @package _global_\n"), ("data", ENTRIES, "")):
        (root / group).mkdir()
        for name, text in entries.items():
            (root / group / f"{name}.yaml").write_text(f"{head}{text}\n")
    return root


@pytest.mark.parametrize(("overrides", "sources"), WAYS, ids=[" ".join(way) or "nothing" for way, _ in WAYS])
def test_the_sources_of_every_way_to_name_one(folder: Path, overrides: list[str], sources: list[str]) -> None:
    assert sorted(compose(overrides, folder).data.sources) == sorted(sources)


def test_what_the_default_entry_says_beside_its_sources(folder: Path) -> None:
    """Its seq_len was for its own short rows; when the data ends must be said somewhere."""
    for overrides in ([ADD], [SET], ["experiment=own"]):
        data = compose(overrides, folder).data
        assert (data.seq_len, data.stop.epochs) == (2048, 3.0)
    assert compose([ADD, "data.seq_len=512"]).data.seq_len == 512
    both = compose(["experiment=own_two"], folder).data
    assert (both.seq_len, both.stop.epochs) == (64, 9.0)
    assert compose(["data=demo", ADD]).data.seq_len == 256


def test_a_source_given_whole_takes_nothing_from_the_default_entrys_source_of_its_name(folder: Path) -> None:
    mine = compose(["experiment=same_name"], folder).data.sources["words"]
    assert (mine.format, mine.template, mine.validation_fraction) == ("sharegpt", "auto", 0.0)
    changed = compose(["experiment=changes"], folder).data.sources["words"]
    assert (changed.template, changed.validation_fraction, changed.weight) == ("plain", 0.02, 2.0)
    beside = compose(["experiment=own_and_change"], folder).data.sources["words"]
    assert (beside.path, beside.weight) == ("data_prep/demo/words.jsonl.gz", 2.0)


def test_what_is_left_out_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_from_argv([ADD], command="data_prep")
    line = (
        "corral: data=demo, the default entry, is left out (source words, seq_len=256), because the config has sources"
    )
    assert capsys.readouterr().err.startswith(line)
    for silent in (["data=demo", ADD], ["data=alpaca", ADD], [], ["data.sources.words.path=x"]):
        config_from_argv(silent, command="data_prep")
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("told", ["RANK", "CORRAL_TOLD"])
def test_it_is_said_once_however_many_processes_compose(
    told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(told, "1")
    config_from_argv([ADD], command="train")
    assert capsys.readouterr().err == ""


def test_a_name_that_is_taken_is_refused() -> None:
    for override in (f"+data.sources.alpaca={MINE}", f"+data.sources={{alpaca: {MINE}}}"):
        with pytest.raises(ConfigError, match=r"data\.sources\.alpaca: this key exists already; remove the \+"):
            compose(["data=alpaca", override])


def test_an_own_source_that_lacks_its_path_is_named_and_no_other() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["+data.sources.mine={format: alpaca}"])
    (line,) = caught.value.problems
    assert line.startswith("data.sources.mine.path: missing")
