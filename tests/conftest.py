"""What every test shares: an environment without network and with few threads, real data, and no child left behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

# Before any test imports torch or transformers; the child processes of tests inherit it.
os.environ.update(
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    GLOO_SOCKET_IFNAME=os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Everything but ``-m gpu`` runs on the CPU, on a machine with GPUs too: so the same is tested everywhere."""
    if "gpu" not in str(config.getoption("-m") or "").replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


EXTENDED = Path(__file__).with_name("extended.txt")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the longest of the slow tests, which one list names because it changes with what a machine can do."""
    named = {*EXTENDED.read_text(encoding="utf-8").splitlines()}
    for item in items:
        if item.nodeid.partition("[")[0] in named:
            item.add_marker("extended")


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """``real_data("alpaca/alpaca_data.json.gz")``: a file or folder below CORRAL_TEST_DATA.

    Skips the test where the variable is unset. Where it is set a missing file is an error: a suite that was told
    where its data is must not pass by skipping.
    """
    root = os.environ.get("CORRAL_TEST_DATA")

    def find(relative: str) -> Path:
        if not root:
            pytest.skip(f"needs {relative}; set CORRAL_TEST_DATA to the folder that holds it")
        path = Path(root, relative).resolve()
        assert path.exists(), f"CORRAL_TEST_DATA={root} holds no {relative}"
        return path

    return find


@pytest.fixture
def give() -> Callable[[Path], Path]:
    """``give(path)`` makes a file, folder or link that of another user, which root alone can do; else skips."""

    def to_another(path: Path) -> Path:
        if os.geteuid():
            pytest.skip("only root gives files to another user")
        os.lchown(path, 54321, 54321)
        return path

    return to_another


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Ends the processes that a test started and left running, so that they cannot disturb the next one."""
    me = psutil.Process()
    before = {child.pid for child in me.children(recursive=True)}
    yield
    # Helpers of multiprocessing and W&B belong to the session, not to a test.
    left = [child for child in me.children(recursive=True) if child.pid not in before and not _is_helper(child)]
    for child in left:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=10)


def _is_helper(process: psutil.Process) -> bool:
    try:
        line = " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return True
    return any(helper in line for helper in ("resource_tracker", "forkserver", "wandb-core"))
