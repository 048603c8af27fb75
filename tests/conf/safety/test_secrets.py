"""Secrets by shape, by origin and by value; and what only looks like one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.compose import compose, config_of_run, load_config, save_config, to_yaml
from conf.errors import ConfigError
from conf.safety import environment, secrets
from conf.safety.arguments import JOB, for_children, for_job, forget, spelt_out
from conf.safety.names import names_secret
from conf.safety.secrets import HIDDEN, learn, learn_from, redact, redact_text, without_known


@pytest.fixture(autouse=True)
def _nothing_learnt() -> Iterator[None]:
    secrets._learnt.clear()
    environment._kept.clear()
    yield
    secrets._learnt.clear()
    environment._kept.clear()


KEY = "Zq7" * 8
"""Stands for letters and digits that nobody could guess."""
SHAPES = {
    "a password": ("s3://user:hunter2@host/b", "hunter2"),
    "with a slash": ("s3://key:se/c+ret/x@host/b", "se/c+ret/x"),
    "with an at": ("https://user:p@ss@w@host/b", "p@ss@w"),
    "without a user": ("redis://:hunter2@host:6379/0", "hunter2"),
    "a user alone": (f"https://{KEY}@github.com/x", KEY),
    "before a port": ("postgres://u:hunter2@host:5432/db?sslmode=on", "hunter2"),
    "in a sentence": ("(https://u:hunter2@host/x) cannot be read", "hunter2"),
    "token=": (f"https://h/x?a=1&token={KEY}&b=2", KEY),
    "access_token=": (f"https://h/x?access_token={KEY}", KEY),
    "sig=": (f"https://acct.blob.core.windows.net/c?sv=1&sig={KEY}%3D&se=2", f"{KEY}%3D"),
    "X-Amz-Signature=": (f"https://b.s3.amazonaws.com/k?X-Amz-Signature={KEY}", KEY),
    "X-Amz-Credential=": (f"https://b.s3/k?X-Amz-Credential={KEY}%2F2026", f"{KEY}%2F2026"),
    "X-Amz-Security-Token=": (f"https://b.s3/k?X-Amz-Security-Token={KEY}", KEY),
    "X-Goog-Signature=": (f"https://storage/k?X-Goog-Signature={KEY}", KEY),
    "AWSAccessKeyId=": (f"https://b.s3/k?AWSAccessKeyId={KEY}&Expires=1", KEY),
    "key= of a URL": (f"https://h/x?key={KEY}", KEY),
    "AccountKey=": (f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={KEY}==;x=1", f"{KEY}=="),
    "password=": ("host=db password=hunter2 user=u", "hunter2"),
    "in quotes": ("{'password': 'hunter 2', 'x': 1}", "hunter 2"),
    "in JSON": ('{"api_key": "hunter2"}', "hunter2"),
    "in a mapping": ("{user: u, client_secret: hunter2}", "hunter2"),
    "a header": (f"Authorization: Bearer {KEY}1", f"{KEY}1"),
    "AWS": ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    "AWS for a while": ("x ASIAIOSFODNN7EXAMPLE y", "ASIAIOSFODNN7EXAMPLE"),
    "GitHub": (f"ghp_{KEY}", f"ghp_{KEY}"),
    "GitHub, fine": (f"github_pat_{KEY}_{KEY}", f"github_pat_{KEY}_{KEY}"),
    "GitLab": (f"glpat-{KEY}", f"glpat-{KEY}"),
    "Slack": ("xoxb-123456789-abcdef", "xoxb-123456789-abcdef"),
    "Hugging Face": (f"hf_{KEY}", f"hf_{KEY}"),
    "OpenAI": (f"sk-proj-{KEY}_x-{KEY}", f"sk-proj-{KEY}_x-{KEY}"),
    "a web token": ("eyJhbGciOiJIUzI1.eyJzdWIiOiIx.SflKxwRJ-_x", "eyJhbGciOiJIUzI1.eyJzdWIiOiIx.SflKxwRJ-_x"),
    "Google": (f"AIza{KEY}{KEY}", f"AIza{KEY}{KEY}"),
    "a private key": ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", "MIIEow"),
}
PLAIN = (
    "max_new_tokens=3 eos_token=</s> pad_token=<pad> tokenizer=train model.tokenizer=x model.new_tokens=[<|x|>]",
    "data.stop.tokens=1000 optim.betas=[0.9,0.95] checkpoint.keep=2 key=value monkey=1 keyboard=us",
    "hf://datasets/OWNER/NAME@REVISION:CONFIG/train", "https://host:8080/a@b", "file:///tmp/a:b@c",
    "git@github.com:owner/repository",
    "data/sk-wikipedia-2024-shard-00001.jsonl", "data/sk-SK-wiki-dump.jsonl", "hf_transfer", "tokens: 3, key: text",
    "basic authentication, bearer instruments", "step 3: held-out loss 7.1606, exact match words 0%",
    "a token: write the token alone; key: the setting", "2f1e0c6b8f4d4c1e9a7b3d5f6e8a9b0c1d2e3f40",
    "fields={key: question, completion: answer}", "patience=3 pathology=1 authors=2 compass=1",
)  # fmt: skip
"""What must stay as it is."""


@pytest.mark.parametrize("what", SHAPES)
def test_a_secret_is_recognised_by_its_shape(what: str) -> None:
    text, secret = SHAPES[what]
    for found in (redact_text(text), redact({"a": [text]})["a"][0], redact_text(f"{text}\n{text}")):
        assert secret not in found
        assert HIDDEN in found
        assert redact_text(found) == found
    learn_from([text])
    quoted = unquote(secret)
    if len(quoted) >= 8 and "\n" not in secret:  # shorter ones are hidden where their shape says it
        assert quoted not in without_known(f"bad password '{quoted}'"), "a driver may quote the secret alone"


@pytest.mark.parametrize("text", PLAIN)
def test_what_only_looks_like_a_secret_stays(text: str) -> None:
    assert redact_text(text) == text


def test_every_setting_that_there_is_stays() -> None:
    for words in (["experiment=demo"], ["experiment=alpaca_llama3_8b_lora"], ["data=flan2021", "model=qwen3_0p6b"]):
        assert HIDDEN not in to_yaml(compose(words))


@pytest.mark.parametrize(
    ("name", "variable", "setting"),
    [
        ("HF_TOKEN", True, True), ("GITHUB_PAT", True, True), ("DB_PASS", True, True), ("AZURE_SAS", True, True),
        ("MYSQL_PWD", True, True), ("PGPASSWORD", True, True), ("HTTP_AUTH", True, True), ("MY_KEY", True, False),
        ("API_KEY_2", True, True), ("DATABASE_URL", True, False), ("AWS_SECRET_ACCESS_KEY", True, True),
        ("AWS_ACCESS_KEY_ID", True, True), ("clientSecret", True, True), ("STORAGE_CONNECTION_STRING", True, True),
        ("MAX_TOKENS", False, False), ("TOKENIZERS_PARALLELISM", False, False), ("SSH_AUTH_SOCK", False, False),
        ("PATH", False, False), ("KEYBOARD", False, False), ("PATTERN", False, False), ("COMPASS", False, False),
        ("eos_token", True, False), ("tokenizer", False, False), ("new_tokens", False, False), ("key", True, False),
        ("token", True, True), ("eos_token_id", False, False), ("image_token", True, False),
    ],
)  # fmt: skip
def test_names_that_say_it(name: str, variable: bool, setting: bool) -> None:
    assert names_secret(name, variable=True) == variable
    assert names_secret(name) == setting


def test_secrets_of_the_environment_are_known_by_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "s3cr3t-value-xyz")
    monkeypatch.setenv("DATABASE_URL", "postgres://u:hunter22@h/db")
    monkeypatch.setenv("HTTPS_PROXY", "http://u:proxy%20pass@proxy:3128")  # its name says nothing
    monkeypatch.setenv("MAX_TOKENS", "unhidden")
    monkeypatch.setenv("SOME_KEY", str(tmp_path))  # the path of a key is none
    monkeypatch.setenv("SLURM_JWT", "jwt-of-slurm")
    monkeypatch.setenv("FEATURE_AUTH", "disabled")
    monkeypatch.setenv("SHORT_PASS", "abc12")
    text = f"s3cr3t-value-xyz, 'hunter22', proxy pass, unhidden, {tmp_path}, jwt-of-slurm, disabled, abc12"
    assert redact_text(text) == f"{HIDDEN}, '{HIDDEN}', {HIDDEN}, unhidden, {tmp_path}, {HIDDEN}, disabled, abc12"


def test_a_mapping_is_judged_by_its_keys() -> None:
    found = {"hf_token": "zzz", "eos_token": "</s>", "key": "x", "n": {"password": "p", "token": None, "api_key": 7}}
    assert redact(found) == {
        "hf_token": HIDDEN, "eos_token": "</s>", "key": "x", "n": {"password": HIDDEN, "token": None, "api_key": 7},
    }  # fmt: skip


@given(st.text(st.characters(codec="utf-8"), min_size=12, max_size=40))
def test_a_learnt_secret_is_nowhere(secret: str) -> None:
    secrets._learnt.clear()
    learn(secret)
    if secret.isprintable() and secret.strip() and not Path(secret).exists():
        assert secret not in without_known(f"<{secret}> {secret}")


def test_words_and_numbers_are_not_learnt(tmp_path: Path) -> None:
    for plain in ("true", "auto", "12", "1234567", "abc", "", str(tmp_path)):
        learn(plain)
    assert secrets._learnt == {}
    learn("pass12")  # a word of its own, no part of another
    assert without_known("pass12, bypass123") == f"{HIDDEN}, bypass123"


URL = "s3://me:${oc.env:OWN}@host/corpus"


def test_run_yaml_keeps_the_interpolation_and_reads_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN", "innocent-1")
    monkeypatch.setenv("KIND", "linear")
    monkeypatch.setenv("ROWS", "7")
    words = [f"data.prepared='{URL}'", "tracker.group=${oc.env:OWN}", "schedule.kind=${oc.env:KIND}"]
    words += ["name=x", "checkpoint.copy_to=/c/${name}-${oc.env:OWN}"]
    words += ['data.sources.words.rows="${oc.decode:${oc.env:ROWS}}"']
    cfg = compose(words)
    assert cfg.data.prepared == "s3://me:innocent-1@host/corpus"
    file = tmp_path / "run.yaml"
    save_config(cfg, file)
    text = file.read_text()
    assert "innocent-1" not in text
    assert f"prepared: {URL}" in text
    assert "group: ${oc.env:OWN}" in text
    assert "copy_to: /c/x-${oc.env:OWN}" in text
    assert "kind: linear" in text  # one of a few words is no secret, nor is a number
    assert "rows: 7" in text
    assert redact_text("at innocent-1") == "at ${oc.env:OWN}"
    assert load_config(file) == cfg
    monkeypatch.setenv("OWN", "innocent-2")  # a password that was changed
    assert load_config(file).data.prepared == "s3://me:innocent-2@host/corpus"
    assert "innocent" not in to_yaml(load_config(file))


def test_a_place_on_this_machine_is_kept_as_it_was_written_and_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELF", str(tmp_path))
    cfg = compose(["data.sources.words.path=${oc.env:SHELF}/rows.jsonl"])
    assert "path: ${oc.env:SHELF}/rows.jsonl" in to_yaml(cfg)
    assert redact_text(f"no file {tmp_path}/rows.jsonl") == f"no file {tmp_path}/rows.jsonl"


def test_a_default_and_a_plain_dollar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OWN", raising=False)
    cfg = compose(["tracker.group=${oc.env:OWN,plain}", r"tracker.project=\${oc.env:OWN}"])
    save_config(cfg, tmp_path / "run.yaml")
    assert (cfg.tracker.group, cfg.tracker.project) == ("plain", "${oc.env:OWN}")
    monkeypatch.setenv("OWN", "innocent-1")
    assert load_config(tmp_path / "run.yaml") == cfg
    cfg = compose(["tracker.group=${oc.env:MY_TOKEN,innocent-3}"])  # a default that is a secret
    assert "innocent-3" not in to_yaml(cfg)


def test_what_names_folders_is_shown_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN", "tuesday")
    monkeypatch.setenv("MY_TOKEN", "innocent-1")
    cfg = compose(["name=${oc.env:RUN}", "tracker.group=${oc.env:RUN}"])
    assert "name: tuesday" in to_yaml(cfg)
    assert redact_text("outputs/tuesday") == "outputs/tuesday"
    for word in ("name=${oc.env:MY_TOKEN}", "run_dir=outputs/${oc.env:MY_TOKEN}", f"name=hf_{KEY}"):
        with pytest.raises(ConfigError, match=r"(name|run_dir): \S+ would show a secret, because folders are named so"):
            compose([word])


def test_a_command_on_a_run_says_what_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN", "innocent-1")
    save_config(compose([f"data.prepared='{URL}'"]), tmp_path / "run.yaml")
    how = {"command": "train.export", "sections": ("data",)}
    assert config_of_run([f"run_dir={tmp_path}"], **how)[0].data.prepared == "s3://me:innocent-1@host/corpus"
    monkeypatch.delenv("OWN")
    with pytest.raises(ConfigError, match=r"data\.prepared: s3\S+ cannot be read, because OWN is not set; set it, or"):
        config_of_run([f"run_dir={tmp_path}"], **how)
    assert config_of_run([f"run_dir={tmp_path}", "data.prepared=x"], **how)[0].data.prepared == "x"
    save_config(compose(["data.prepared=s3://me:typed-secret@host/corpus"]), tmp_path / "run.yaml")
    assert "typed-secret" not in (tmp_path / "run.yaml").read_text()
    with pytest.raises(
        ConfigError, match=r"data\.prepared: run\.yaml keeps no secrets, and s3://\[redacted\]@host/cor"
    ):
        config_of_run([f"run_dir={tmp_path}"], **how)


def test_the_run_yaml_of_a_stranger_reads_no_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, give) -> None:  # type: ignore[no-untyped-def]
    """It could send any of ours to any server."""
    monkeypatch.setenv("OWN", "innocent-1")
    file = tmp_path / "run.yaml"
    save_config(compose([f"data.prepared='{URL}'"]), file)
    give(file)
    with pytest.raises(ConfigError, match=r"it reads OWN of your environment, and user 54321 wrote it"):
        load_config(file)
    file.write_text(file.read_text().replace("${oc.env:OWN}", "x"))
    give(file)
    load_config(file)


WORDS = ["a=b", "data.prepared=s3://u:typed-secret@h/c", "", "zwei  Wörter", "x\ny"]


def test_arguments_of_children_are_not_shown(tmp_path: Path) -> None:
    assert for_children(["a=b"]) == ["a=b"]  # nothing to hide
    (word,) = for_children(WORDS)
    assert word.startswith(f"@/proc/{os.getpid()}/fd/")
    assert spelt_out([word, "after=1"]) == [*WORDS, "after=1"]
    code = "import sys; from conf.safety.arguments import spelt_out; print(ascii(spelt_out(sys.argv[1:])))"
    done = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ascii(WORDS)


def test_arguments_of_a_job_are_in_a_file_for_its_user(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        (word,) = for_job(WORDS, tmp_path)
    finally:
        os.umask(before)
    path = Path(word[1:])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert spelt_out([word]) == WORDS
    forget(JOB)
    assert not path.exists()
    assert for_job(["a=b"], tmp_path) == ["a=b"]
    assert list(tmp_path.iterdir()) == []
