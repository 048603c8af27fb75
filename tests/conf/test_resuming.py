"""Every setting is judged: what another value means for a run that continues."""

from __future__ import annotations

import pytest

from conf import walk
from conf.compose import compose
from conf.errors import ConfigError
from conf.judge import validate
from conf.schema import RunConfig, to_dict
from conf.schema.resuming import CHANGES, SOURCE, WHOLE, change_of, named, pattern

FIELDS = set(walk.dotted_fields(RunConfig))
LEAVES = sorted(
    each for each in FIELDS if not any(other.startswith(f"{each}.") for other in FIELDS) and "FACTS" not in each
)
OWN_ENTRY = [each for each in LEAVES if each.partition(".")[0] not in WHOLE]
ABOVE = {f"{SOURCE}.style", f"{SOURCE}.select", f"{SOURCE}.rate", "data.stop", "data.decontaminate"}
"""Values that are set as a whole."""


@pytest.mark.parametrize("key", OWN_ENTRY)
def test_every_setting_has_an_entry(key: str) -> None:
    assert key in CHANGES or any(key.startswith(f"{each}.") and each in CHANGES for each in ABOVE), (
        f"say in conf/schema/resuming.py what a change of {key} means for a run that continues"
    )


def test_sections_of_one_kind_have_an_entry_and_no_entry_is_dead() -> None:
    assert set(WHOLE) <= CHANGES.keys() & FIELDS
    known = FIELDS | {SOURCE, "zero.deepspeed.zero_hpz_partition_size"}
    assert CHANGES.keys() <= known
    assert all(each.meaning for each in CHANGES.values() if each.kind != "free")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("optim.lr", "mathematics"),
        ("optim.betas", "mathematics"),
        ("optim.a_new_setting", "mathematics"),
        ("model.dtype", "mathematics"),
        ("batch.global_size", "mathematics"),
        ("batch.micro_size", "free"),
        ("schedule.max_steps", "course"),
        ("data.stop.epochs", "course"),
        ("data.sources.a.weight", "mathematics"),
        ("data.sources.a.b.weight", "mathematics"),
        ("data.sources.a.sources.b.rate.cap", "mathematics"),
        ("data.sources.a.sources.b", "mathematics"),
        ("data.sources.a.path", "content"),
        ("data.sources.a.b.sources.c.d.path", "content"),
        ("zero.deepspeed.zero_quantized_gradients", "mathematics"),
        ("zero.deepspeed.zero_hpz_partition_size", "free"),
        ("zero.stage", "free"),
        ("tuning.rank", "never"),
        ("tuning.dropout", "mathematics"),
        ("model.config.rope_theta", "never"),
        ("seed", "never"),
        ("tracker.log_every", "free"),
        ("guard.loss", "course"),
        ("a_section_nobody_judged.x", "mathematics"),
    ],
)
def test_kinds(path: str, kind: str) -> None:
    assert change_of(path).kind == kind


def test_names() -> None:
    assert pattern("data.sources.a.sources.b.weight") == f"{SOURCE}.weight"
    assert pattern("optim.lr") == "optim.lr"
    assert named("optim.lr", ["optim"])
    assert named("optim.lr", ["batch", "optim.lr"])
    assert not named("optim.lr", ["optim.l"])


def test_allow_is_a_list_or_words_between_commas() -> None:
    assert compose(["resume.allow=[optim.lr,data.sources.gone.weight]"]).resume.allow == [
        "optim.lr",
        "data.sources.gone.weight",
    ]
    assert compose(["resume.allow=optim"]).resume.allow == ["optim"]
    both = compose(["resume=must", "resume.allow='optim.lr, batch.global_size'"])
    assert (both.resume.mode, both.resume.allow) == ("must", ["optim.lr", "batch.global_size"])


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("optim.lrr", "resume.allow: there is no setting optim.lrr; did you mean optim.lr?"),
        ("batch.size", "resume.allow: there is no setting batch.size; did you mean batch."),
    ],
)
def test_a_key_that_there_is_not_is_refused(key: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([f"resume.allow=[{key}]"])
    assert expected in str(caught.value)


def test_resume_was_one_word() -> None:
    """In run.yaml of earlier releases, and in yaml of users."""
    for word in ("auto", "never", "must"):
        assert compose([f"resume={word}"]).resume.mode == word
        plain = to_dict(compose([]))
        assert validate({**plain, "resume": word}).resume.mode == word
    with pytest.raises(ConfigError, match="resume=always: no such entry"):
        compose(["resume=always"])
