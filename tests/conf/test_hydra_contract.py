"""What conf/compose.py takes for granted of Hydra and OmegaConf, much of it internal: an upgrade fails here first.

If a test here fails after an upgrade: read the changed module in the installed ``hydra`` package, adapt the function of
conf/compose.py that the test names, run tests/conf, and only then raise the versions in setup.py and constraints.txt.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def contract(function: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test that ends, whatever goes wrong in it, in what to do; ``function`` is the user in conf/compose.py."""

    def decorated(test: Callable[..., None]) -> Callable[..., None]:
        @wraps(test)
        def run(*arguments: Any, **named: Any) -> None:
            try:
                test(*arguments, **named)
            except (Exception, pytest.fail.Exception) as error:
                hydra, omegaconf = (importlib.import_module(name).__version__ for name in ("hydra", "omegaconf"))
                pytest.fail(
                    f"Hydra {hydra} with OmegaConf {omegaconf} is not as conf/compose.py:{function} needs it "
                    f"({type(error).__name__}: {error}). Adapt {function}, or keep the versions of constraints.txt."
                )

        return run

    return decorated


def test_the_versions_are_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text()
    assert re.search(r"^hydra-core==", pins, re.M), "conf/compose.py uses internals: constraints.txt must pin Hydra"
    assert re.search(r"^omegaconf==", pins, re.M), "conf/compose.py uses internals: constraints.txt must pin OmegaConf"


USED = {
    "ConfigLoaderImpl", "ConfigSearchPathImpl", "OverridesParser", "Override", "OverrideType", "Plugins",
    "HydraException", "RunMode", "DictConfig", "OmegaConf", "OmegaConfBaseException",
}  # fmt: skip
"""The names that conf/compose.py imports; the tests below say what it needs of them."""


def test_compose_imports_nothing_else() -> None:
    imports = re.findall(r"^from (?:hydra|omegaconf)\S* import (.+)$", (ROOT / "conf/compose.py").read_text(), re.M)
    names = {name.strip() for line in imports for name in line.split(",")}
    assert names == USED, "conf/compose.py imports other names than USED: say below what it needs of them"


def parse(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides([text])[0]


@contract("_parsed")
def test_an_override_knows_its_key_value_and_text() -> None:
    from hydra.core.override_parser.types import Override, OverrideType

    one = parse("optim.lr=1e-5")
    assert isinstance(one, Override)
    assert (one.key_or_group, one.value(), one.input_line, one.package) == ("optim.lr", 1e-5, "optim.lr=1e-5", None)
    assert (one.type, one.is_delete(), one.is_sweep_override()) == (OverrideType.CHANGE, False, False)
    assert parse("+a.b={c: 1}").type is OverrideType.ADD
    assert parse("+a.b={c: 1}").value() == {"c": 1}
    assert parse("~a.b").is_delete()
    assert parse("a=1,2").is_sweep_override()
    assert parse("zero@x=2").package == "x"
    assert parse("a=null").value() is None


@contract("_entries, _typed and _setting")
def test_plain_words_are_typed_as_yaml_12_types_them() -> None:
    assert [parse(f"a={text}").value() for text in ("2", "1e3", "true", "[a,2]", "word")] == [
        2, 1e3, True, ["a", 2], "word",
    ]  # fmt: skip
    assert parse("name=007").input_line == "name=007"  # the text as typed: for settings that are text
    assert parse("a='2'").value() == "2"


@contract("_parsed")
def test_what_cannot_be_read_is_a_hydra_exception() -> None:
    from hydra.errors import HydraException

    for text in ("a=(", "a", "a=[1"):
        with pytest.raises(HydraException):
            parse(text)


def loader(root: Path, second: Path) -> Any:
    """As conf/compose.py:_composed makes it, over two folders."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
    from hydra.core.plugins import Plugins

    Plugins.instance()
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    for folder in (root, second):
        path.append("main", f"file://{folder}")
    path.append("schema", "structured://")
    return ConfigLoaderImpl(path)


def loaded(root: Path, second: Path, *choices: str) -> Any:
    from hydra.types import RunMode

    return loader(root, second).load_configuration("config", list(choices), RunMode.RUN, from_shell=False)


def overridden(root: Path, second: Path, *choices: str) -> Any:
    from hydra.types import RunMode

    defaults = loader(root, second).compute_defaults_list("config", list(choices), RunMode.RUN)
    return defaults.overrides.override_choices


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The user's folder, which comes first, and ours with the root."""
    first, second = tmp_path / "first", tmp_path / "second"
    texts = {
        first / "zero/2.yaml": "stage: mine",
        second / "config.yaml": "defaults:\n  - zero: '1'\n  - optional debug: null\n  - _self_\nname: demo\n",
        second / "zero/1.yaml": "stage: 1",
        second / "zero/2.yaml": "stage: 2",
        second / "debug/fast.yaml": "# @package _global_\nname: fast",
        second / "extra/x.yaml": "a: ${name}",
    }
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return first, second


@contract("_composed")
def test_the_loader_takes_what_compose_gives_it() -> None:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    taken = inspect.signature(ConfigLoaderImpl.load_configuration).parameters
    assert list(taken)[1:4] == ["config_name", "overrides", "run_mode"]
    assert "from_shell" in taken


@contract("_composed")
def test_groups_are_composed_and_the_first_folder_wins(folders: tuple[Path, Path]) -> None:
    from omegaconf import DictConfig

    plain = loaded(*folders)
    assert isinstance(plain, DictConfig)
    assert "hydra" in plain  # which _composed takes away
    assert (plain.zero.stage, plain.name) == (1, "demo")
    assert loaded(*folders, "zero='2'").zero.stage == "mine"  # quoted: unquoted, 2 is a number and refused
    assert loaded(*folders, "+extra='x'").extra.a == "demo"  # a group that the root does not list
    assert "zero" not in loaded(*folders, "~zero")
    assert loaded(*folders, "debug='fast'").zero.stage == 1


@contract("_composed")
def test_what_cannot_be_composed_is_a_known_exception(folders: tuple[Path, Path]) -> None:
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    with pytest.raises((HydraException, OmegaConfBaseException)):
        loaded(*folders, "zero='nothing'")
    (folders[1] / "zero/1.yaml").write_text("stage: [")
    with pytest.raises(yaml.YAMLError):
        loaded(*folders)


@contract("_composed")
def test_composing_leaves_no_global_state(folders: tuple[Path, Path]) -> None:
    from hydra.core.global_hydra import GlobalHydra

    loaded(*folders)
    assert not GlobalHydra.instance().is_initialized()


@contract("_composed")
def test_the_defaults_list_says_which_groups_were_named(folders: tuple[Path, Path]) -> None:
    (folders[1] / "debug/own.yaml").write_text("# @package _global_\ndefaults: [{override /zero: '2'}]\n")
    assert set(overridden(*folders)) == set()
    assert set(overridden(*folders, "zero='1'")) == {"zero"}  # although it is the default entry
    assert set(overridden(*folders, "debug='own'")) == {"zero", "debug"}
    assert set(overridden(*folders, "~zero")) == set()


@contract("_resolved")
def test_a_value_that_cannot_be_resolved_is_named() -> None:
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for broken, key in (
        ({"a": {"b": ["x", "${nowhere}"]}}, "a.b[1]"),
        ({"a": {"b": ["x", {"c": "${"}]}}, "a.b[1].c"),
        ({"c": "${c}"}, "c"),
    ):
        with pytest.raises(OmegaConfBaseException) as caught:
            OmegaConf.to_container(DictConfig(broken), resolve=True)
        assert caught.value.full_key == key
        assert ("Recursive" in str(caught.value)) == (key == "c")


@contract("_resolved")
def test_missing_keys_and_interpolations() -> None:
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = DictConfig({"a": "???", "b": "${c}", "c": 3})
    assert OmegaConf.to_container(config, resolve=False)["a"] == "???"  # type: ignore[call-overload,index]
    assert OmegaConf.to_container(config, resolve=True)["b"] == 3  # type: ignore[call-overload,index]
    assert OmegaConf.to_container(config, resolve=False)["b"] == "${c}"  # type: ignore[call-overload,index]
    with pytest.raises(OmegaConfBaseException):
        OmegaConf.to_container(DictConfig({"b": "${nowhere}"}), resolve=True)


def test_a_broken_contract_says_what_to_do() -> None:
    @contract("_composed")
    def broken() -> None:
        raise ImportError("No module named 'hydra._internal.config_loader_impl'")

    with pytest.raises(pytest.fail.Exception, match=r"_composed needs it \(ImportError: .*constraints\.txt"):
        broken()
