"""Sends metrics and alerts to Weights & Biases from a helper thread: a slow or dead server never delays training.

``wandb.init`` can block for a minute and ``log`` for tenths of a second; the loop only puts a dict into a bounded
queue. ``metrics.jsonl`` also contains any metrics that W&B loses: a start after a death sends them again, and nothing
twice, so that W&B holds every step once.
"""

from __future__ import annotations

import http.client
import netrc
import os
import queue
import secrets
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from conf.durable import write_whole
from conf.foreign.json_file import object_in
from conf.safety.secrets import redact
from conf.schema import TrackerConfig
from train.tracking.alerts import WAIT_S, Alert, Alerts, before_start
from train.tracking.wandb_files import sent_offline

QUEUE_SIZE = 10_000
PROBE_TIMEOUT_S = 5
INIT_TIMEOUT_S = 20
CLOSE_WAIT_S = {"online": 10.0, "offline": 60.0}
"""A server may never answer, but writes to this machine's disk always end, so offline waits longer."""
POLL_S = 0.2


class WandbTracker:
    """A sink that may be late or fail without any effect on the run; ``note`` receives its rare messages."""

    def __init__(
        self,
        run_dir: Path,
        name: str,
        settings: TrackerConfig,
        config: Mapping[str, Any],
        note: Callable[[str], None],
    ) -> None:
        self.run_dir, self.name, self.settings, self.tell = run_dir, name, settings, note
        self.config = redact(config)
        self.project, self.group, self.label = redact([settings.project, settings.group or name, name])
        self.run_id = run_id(run_dir)
        self.mode = settings.wandb
        if self.mode == "online" and not has_api_key():
            self.mode = "offline"
            note("W&B: this machine has no API key, so the run is recorded offline; set WANDB_API_KEY or `wandb login`")
        self.queue: queue.Queue[dict[str, float] | Alert] = queue.Queue(QUEUE_SIZE)
        self.lost = 0
        self.exit_code: int | None = None
        self.folder: Path | None = None
        self.thread = threading.Thread(target=self.work, name="wandb", daemon=True)
        metrics = run_dir / "metrics.jsonl"
        self.before = metrics.read_bytes() if metrics.is_file() else b""
        """The steps of earlier attempts that this one continues."""
        self.sent: dict[int, set[str]] = {}
        """Step -> names of metrics that W&B has from earlier attempts."""
        self.sent_until = -1
        """The last step that W&B's server has from earlier attempts."""
        self.alerts = Alerts()
        for kind, fields in before_start(run_dir):
            self.put(self.alerts.of_event(kind, fields))
        self.thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.put({"step": step, **metrics})

    def event(self, kind: str, **fields: Any) -> None:
        self.put(self.alerts.of_event(kind, fields))

    def put(self, content: dict[str, float] | Alert | None) -> None:
        """Queue what is to be sent, if anything; never waits."""
        if content is None:
            return
        try:
            self.queue.put_nowait(content)
        except queue.Full:
            self.lost += 1

    def note(self, text: str) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self, code: int) -> None:
        self.put(self.alerts.of_ending(code, self.run_dir))
        self.exit_code = code
        self.thread.join(CLOSE_WAIT_S[self.mode])
        where = self.folder or self.run_dir / "wandb"
        if self.thread.is_alive():
            self.tell(f"W&B: the upload did not finish in time; to complete it: wandb sync {where}")
        elif self.mode == "offline":
            self.tell(f"W&B: the run was recorded offline; to upload it: wandb sync {where}")
        if self.lost:
            self.tell(f"W&B: {self.lost} lines were not sent, because the queue was full; metrics.jsonl has all lines")

    def work(self) -> None:
        """The body of the helper thread. It catches every error of W&B, because W&B must never stop the run."""
        try:
            self.pass_on(self.start())
        except Exception as error:
            goes_on = "the run continues without W&B, and " if self.exit_code is None else ""
            self.tell(f"W&B: {type(error).__name__}: {first_line(error)}; {goes_on}metrics.jsonl has everything")

    def pass_on(self, run: Any) -> None:
        """Send what is queued; finish when the tracker is closed and the queue is empty."""
        self.folder = Path(run.dir).parent
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        run.define_metric("data/*", step_metric="train/tokens")
        self.sent = sent_offline(self.run_dir, self.run_id)
        if self.mode == "online":
            known = run.summary.get("step") if run.resumed else None
            self.sent_until = int(known) if isinstance(known, int | float) else -1
        for line in map(object_in, self.before.splitlines()):
            self.send(run, line)
            self.sent.setdefault(line.get("step", -1), set()).update(line)
        self.before = b""
        while True:
            try:
                content = self.queue.get(timeout=POLL_S)
            except queue.Empty:
                if self.exit_code is not None:
                    break
                continue
            if isinstance(content, Alert):
                run.alert(title=content.title, text=content.text, level=content.level, wait_duration=WAIT_S)
            else:
                self.send(run, content)
        run.finish(exit_code=self.exit_code)

    def send(self, run: Any, line: Mapping[str, Any]) -> None:
        """Log what W&B does not have yet of a line of metrics: a step that is trained again is the same step."""
        step = line.get("step")
        if not isinstance(step, int) or step <= self.sent_until:
            return
        known = self.sent.get(step, set())
        if new := {name: value for name, value in line.items() if name not in {"step", *known}}:
            run.log({"step": step, **new})

    def start(self) -> Any:
        """Start a run; offline if the server refuses or does not answer."""
        # Without a network, W&B's error reporting waits 20 s for an answer at exit.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        if self.mode == "online":
            if not answers(base_url()):
                self.tell(f"W&B: {base_url()} does not answer; W&B is recording offline instead")
            else:
                try:
                    return self.init(wandb)
                except wandb.Error as error:
                    self.tell(f"W&B: {first_line(error)}; W&B is recording offline instead")
                    wandb.teardown(exit_code=1)  # W&B's service still holds the run id of the failed attempt
        self.mode = "offline"
        return self.init(wandb)

    def init(self, wandb: Any) -> Any:
        # W&B does not record console, code, git and machine, because run.yaml and the provenance already do.
        quiet = wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
            x_save_requirements=False,
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=CLOSE_WAIT_S[self.mode],
        )
        return wandb.init(
            project=self.project,
            group=self.group,
            name=self.label,
            id=self.run_id,
            resume="allow",
            job_type="train",
            dir=self.run_dir,
            mode=self.mode,
            config=self.config,
            settings=quiet,
        )


def run_id(run_dir: Path) -> str:
    """The W&B id of this run, created at its first start and stored in ``run_dir/wandb_id``."""
    path = run_dir / "wandb_id"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()


def base_url() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")


def answers(url: str) -> bool:
    """Whether a server at ``url`` gives any HTTP answer within PROBE_TIMEOUT_S."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the user's certificate, which W&B may know
    except (OSError, http.client.HTTPException):
        return False


def has_api_key() -> bool:
    """Whether W&B can find an API key in the environment, or in netrc for the server's host."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(base_url()).hostname or ""
    named = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    return any(netrc_has(Path(name).expanduser(), host) for name in named)


def netrc_has(path: Path, host: str) -> bool:
    try:
        return host in netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
