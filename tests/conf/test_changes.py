"""Settings that changed since a checkpoint: refused with the override that allows them, or told with a meaning."""

from __future__ import annotations

import pytest

from conf.checks.changes import changed_settings, data_as_allowed, in_words
from conf.compose import compose
from conf.errors import ConfigError
from conf.schema import RunConfig

BASE = ("+data.sources.more={format: alpaca, path: x.json, weight: 1}", "data.sources.words.weight=1", "tuning=lora")


def config(*more: str) -> RunConfig:
    return compose([*BASE, *more])


def refused(*more: str) -> str:
    with pytest.raises(ConfigError) as caught:
        changed_settings(config(*more), config(), 3)
    return str(caught.value)


def told(*more: str) -> list[str]:
    cfg = config(*more)
    return list(in_words(changed_settings(cfg, config(), 3), cfg))


def test_what_changes_the_computation_is_refused_with_the_override_that_allows_it() -> None:
    assert refused("optim.lr=1e-3") == (
        "resume.allow: since the checkpoint of step 3, settings changed that change what the run computes: "
        "optim.lr: 0.0002 -> 0.001 (the steps to come have another learning rate); set it back, or accept it with "
        "'resume.allow=[optim.lr]', or set another name or run_dir"
    )
    several = (
        "optim.betas=[0.8,0.9]", "batch.global_size=3", "model.dtype=fp32", "data.sources.more.weight=3",
        "objective.z_loss=0.1", "resume.allow=[model.dtype]",
    )  # fmt: skip
    text = refused(*several)
    assert "data.sources.more.weight: 1.0 -> 3.0 (the steps to come draw other shares of the sources)" in text
    assert "model.dtype" not in text.partition("set them back")[0]  # it is allowed
    assert (
        "accept them with 'resume.allow=[model.dtype,batch.global_size,data.sources.more.weight,objective.z_loss,"
        "optim.betas]'" in text
    )
    assert "data.sources.more: {" in refused("~data.sources.more")


def test_what_is_refused_is_allowed_as_the_sentence_says() -> None:
    more = ["optim.lr=1e-3", "optim.eps=1e-6", "data.sources.more.weight=3"]
    allow = refused(*more).partition("with '")[2].partition("'")[0]
    weight, eps, rate = told(*more, allow)
    assert weight == (
        "changed since the checkpoint: data.sources.more.weight: 1.0 -> 3.0, as resume.allow allows: the steps to "
        "come draw other shares of the sources"
    )
    assert eps.endswith(
        "optim.eps: 1e-08 -> 1e-06, as resume.allow allows: the steps to come are other steps, from "
        "moments that were gathered with the old value"
    )
    assert rate.endswith(
        "optim.lr: 0.0002 -> 0.001, as resume.allow allows: the steps to come have another learning rate"
    )
    assert data_as_allowed(config(allow)).allow_change
    assert not data_as_allowed(config("resume.allow=[optim]")).allow_change
    assert "as data.allow_change allows" in told("data.sources.more.weight=3", "data.allow_change=true")[0]
    assert len(told("optim.lr=1e-3", "optim.eps=1e-6", "resume.allow=[optim]")) == 2


def test_what_is_only_told() -> None:
    assert told() == []
    (free,) = told("zero=1", "tracker.log_every=7", "batch.micro_size=2")
    assert free == (
        "changed since the checkpoint, and nothing that is computed: batch.micro_size: 1 -> 2, tracker.log_every: "
        "1 -> 7, zero.stage: 2 -> 1"
    )
    (more,) = told("schedule.max_steps=900")
    assert more.startswith("changed since the checkpoint: schedule.max_steps: 0 -> 900: the run ends elsewhere")
    assert len(told("data.stop={epochs: 9}")) == 1
    (judged,) = told("guard.loss=skip")
    assert judged.endswith("guard.loss: 'warn' -> 'skip': the steps to come are judged otherwise")
    (moved,) = told("data.sources.more.path=elsewhere.json")
    assert moved.endswith("the samples are compared by their content")
    assert told("resume.allow=[optim.lr]") == [
        "resume.allow names optim.lr, which has not changed since the checkpoint"
    ]


@pytest.mark.parametrize("key", ["seed=4", "tuning.rank=3", "model.revision=x", "tuning=full"])
def test_what_the_stored_state_does_not_fit_is_refused_whatever_is_allowed(key: str) -> None:
    name = key.partition("=")[0]
    text = refused(key, f"resume.allow=[{name}]")
    assert f"{name}" in text
    assert "what is stored fits only" in text


def test_what_is_left_open_is_no_change_of_what_an_attempt_took_for_it() -> None:
    before = config("batch.global_size=48")
    assert changed_settings(config("batch.global_size=auto"), before, 3).keys() == {"batch.global_size"}
    with pytest.raises(ConfigError, match=r"batch\.global_size: 48 -> 32"):
        changed_settings(config("batch.global_size=32"), before, 3)
    with pytest.raises(ConfigError, match=r"data\.window: 64 -> 'auto'"):
        changed_settings(config(), config("data.window=64"), 3)
