"""Metrics to Weights & Biases from a helper thread, so that a slow or dead server never holds training up.

``wandb.init`` alone can block for a minute and ``log`` for tenths of a second; the loop only ever puts a dict into
a bounded queue. What W&B loses is still in ``metrics.jsonl``.
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

from conf.schema import TrackerConfig
from train.redact import redact

QUEUE_SIZE = 10_000
PROBE_TIMEOUT_S = 5
INIT_TIMEOUT_S = 20
CLOSE_WAIT_S = {"online": 10.0, "offline": 60.0}
"""A server may never answer; what goes to this machine's own disk gets there, however busy the machine is."""
POLL_S = 0.2


class WandbTracker:
    """A sink that may lag behind or fail without the run noticing; ``note`` receives its rare messages."""

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
        self.run_id = run_id(run_dir)
        self.mode = settings.wandb
        if self.mode == "online" and not has_api_key():
            self.mode = "offline"
            note("W&B: no API key on this machine (WANDB_API_KEY or `wandb login`), so the run is recorded offline")
        self.queue: queue.Queue[dict[str, float]] = queue.Queue(QUEUE_SIZE)
        self.lost = 0
        self.exit_code: int | None = None
        self.folder: Path | None = None
        self.thread = threading.Thread(target=self.work, name="wandb", daemon=True)
        self.thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        try:
            self.queue.put_nowait({"step": step, **metrics})
        except queue.Full:
            self.lost += 1

    def event(self, kind: str, **fields: Any) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self, code: int) -> None:
        self.exit_code = code
        self.thread.join(CLOSE_WAIT_S[self.mode])
        where = self.folder or self.run_dir / "wandb"
        if self.thread.is_alive():
            self.tell(f"W&B: not everything was taken in time; later: wandb sync {where}")
        elif self.mode == "offline":
            self.tell(f"W&B: recorded offline; to upload: wandb sync {where}")
        if self.lost:
            self.tell(f"W&B: {self.lost} lines were not sent (queue full); metrics.jsonl has all of them")

    def work(self) -> None:
        """The helper thread. This is its edge: whatever W&B raises costs W&B, never the run."""
        try:
            self.pass_on(self.start())
        except Exception as error:
            if self.exit_code is None:
                self.tell(f"W&B: {first_line(error)}; going on without it, metrics.jsonl has everything")

    def pass_on(self, run: Any) -> None:
        """Log what is queued; finish when closed and empty."""
        self.folder = Path(run.dir).parent
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        run.define_metric("data/*", step_metric="train/tokens")
        while True:
            try:
                run.log(self.queue.get(timeout=POLL_S))
            except queue.Empty:
                if self.exit_code is not None:
                    break
        run.finish(exit_code=self.exit_code)

    def start(self) -> Any:
        """A started run; offline if the server refuses or does not answer."""
        # W&B's own error reporting phones home and waits 20 s for an answer at exit when there is no network.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        if self.mode == "online":
            if not answers(base_url()):
                self.tell(f"W&B: {base_url()} does not answer; recording offline instead")
            else:
                try:
                    return self.init(wandb)
                except wandb.Error as error:
                    self.tell(f"W&B: {first_line(error)}; recording offline instead")
                    wandb.teardown(exit_code=1)  # its service still holds the run id of the failed attempt
        self.mode = "offline"
        return self.init(wandb)

    def init(self, wandb: Any) -> Any:
        # Console capture, code, git and machine description stay off: run.yaml and provenance say what is needed.
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
            project=self.settings.project,
            group=self.settings.group or self.name,
            name=self.name,
            id=self.run_id,
            resume="allow",
            job_type="train",
            dir=self.run_dir,
            mode=self.mode,
            config=self.config,
            settings=quiet,
        )


def run_id(run_dir: Path) -> str:
    """The W&B id of this run, minted on its first start and kept in ``run_dir/wandb_id``."""
    path = run_dir / "wandb_id"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4) + "\n")
    return path.read_text().strip()


def base_url() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")


def answers(url: str) -> bool:
    """Whether anything at ``url`` speaks HTTP within some seconds; which answer it gives does not matter."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # a certificate of the user's own, which W&B may know
    except (OSError, http.client.HTTPException):
        return False


def has_api_key() -> bool:
    """Whether W&B would find an API key: in the environment, or in netrc for the server's host."""
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
