"""Faults planted on one node of three, in its own mounts and links: the preflight names the node, and why."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.conftest import HERE, ROOT, Cluster

pytestmark = pytest.mark.slurm

BAD = "node2"
PACKAGES = Path(sys.prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
STARTER = sorted(PACKAGES.glob("*.pth"))[0]
"""A file whose lines every Python of the environment runs at its start."""


MOVED = "import time\nif not hasattr(time, 'real'): time.real, time.time = time.time, lambda: time.real() - 60"
"""Starters may be read twice."""


@dataclass(frozen=True)
class Site:
    """A cluster, and the folder of a test that all its nodes share."""

    cluster: Cluster
    folder: Path

    @contextmanager
    def bound(self, node: str, target: Path, content: str | Path) -> Iterator[None]:
        """On ``node`` alone, ``target`` is another file or folder."""
        source = content
        if isinstance(content, str):
            source = self.folder / f"planted-{target.name}"
            source.write_text(content)
            source.chmod(0o755)
        self.cluster.at(node, "mount", "--bind", str(source), str(target))
        try:
            yield
        finally:
            self.cluster.at(node, "umount", str(target))

    def starting(self, line: str) -> AbstractContextManager[None]:
        """Every Python of the bad node runs ``line`` first."""
        return self.bound(BAD, STARTER, f"{STARTER.read_text().rstrip()}\n{line}\n")

    @contextmanager
    def commanded(self, node: str, command: Sequence[str], undo: Sequence[str]) -> Iterator[None]:
        self.cluster.at(node, *command)
        try:
            yield
        finally:
            self.cluster.at(node, *undo)


def no_name_of_the_head(site: Site) -> AbstractContextManager[None]:
    return site.bound(BAD, Path("/etc/hosts"), "127.0.0.1 localhost\n10.214.0.2 node2\n")


def head_is_itself(site: Site) -> AbstractContextManager[None]:
    return site.bound(BAD, Path("/etc/hosts"), "127.0.0.1 localhost\n127.0.1.1 node1\n10.214.0.2 node2\n")


@contextmanager
def read_only(site: Site) -> Iterator[None]:
    run_dir = site.folder / "run"
    with site.bound(BAD, run_dir, run_dir):
        site.cluster.at(BAD, "mount", "-o", "remount,ro,bind", str(run_dir))
        yield


def another_run_dir(site: Site) -> AbstractContextManager[None]:
    (site.folder / "other" / "logs").mkdir(parents=True)
    return site.bound(BAD, site.folder / "run", site.folder / "other")


def no_gpus(site: Site) -> AbstractContextManager[None]:
    return site.bound(BAD, site.folder / "bin" / "nvidia-smi", "#!/bin/sh\necho No devices were found\nexit 6\n")


def driver_hangs(site: Site) -> AbstractContextManager[None]:
    return site.bound(BAD, site.folder / "bin" / "nvidia-smi", "#!/bin/sh\nexec sleep 600\n")


def other_code(site: Site) -> AbstractContextManager[None]:
    path = ROOT / "train" / "optim.py"
    return site.bound(BAD, path, f"{path.read_text()}\n# changed by hand\n")


def other_config(site: Site) -> AbstractContextManager[None]:
    path = ROOT / "conf" / "optim" / "adamw.yaml"
    return site.bound(BAD, path, path.read_text().replace("1.0e-8", "1.0e-5"))


def other_corpus(site: Site) -> AbstractContextManager[None]:
    return site.bound(BAD, site.folder / "corpus" / "MANIFEST.json", "{}")


def other_versions(site: Site) -> AbstractContextManager[None]:
    path = next(PACKAGES.glob("transformers-*.dist-info")) / "METADATA"
    return site.bound(BAD, path, re.sub(r"(?m)^Version: .*", "Version: 4.0.1", path.read_text(), count=1))


def clock_off(site: Site) -> AbstractContextManager[None]:
    """Namespaces share the kernel's clock, so what Python reads of it is moved."""
    return site.starting(f"import time; exec({MOVED!r}, {{}})")


def other_bits(site: Site) -> AbstractContextManager[None]:
    """As on a processor without the vector instructions of the others."""
    return site.starting("import os; os.environ |= {'ATEN_CPU_CAPABILITY': 'default', 'MKL_CBWR': 'COMPATIBLE'}")


def cut_off(site: Site) -> AbstractContextManager[None]:
    return site.commanded(BAD, ["ip", "link", "set", "eth1", "down"], ["ip", "link", "set", "eth1", "up"])


def no_repository(site: Site) -> AbstractContextManager[None]:
    (site.folder / "empty").mkdir()
    return site.bound(BAD, ROOT / "launch", site.folder / "empty")


def slow_card(site: Site) -> AbstractContextManager[None]:
    rate = ["rate", "80mbit", "burst", "64kb", "latency", "50ms"]
    undo = ["tc", "qdisc", "del", "dev", "eth1", "root"]
    return site.commanded(BAD, ["tc", "qdisc", "add", "dev", "eth1", "root", "tbf", *rate], undo)


HUGE = (
    "model.config={model_type: llama, hidden_size: 65536, intermediate_size: 262144, num_hidden_layers: 400, "
    "num_attention_heads: 64}"
)
GPUS = ["--gpus-per-node=4"]

Fault = tuple[Callable[[Site], AbstractContextManager[None]] | None, str, int, list[str], list[str]]
"""How it is planted (None: it is there), what is said of it, the exit code, options of salloc, overrides."""

FAULTS: list[Fault] = [
    (no_name_of_the_head, "the name of the first node, node1, does not resolve there", 76, [], []),
    (head_is_itself, r"node1, is 127\.0\.1\.1 there, which leads back to itself", 76, [], []),
    (read_only, r"it cannot write to run_dir=.*Read-only file system", 76, [], []),
    (another_run_dir, "another folder than the first node's", 76, [], []),
    (no_gpus, "nvidia-smi lists 0 GPUs and 4 were requested", 76, GPUS, []),
    (driver_hangs, "nvidia-smi gives no answer within 8 s", 76, GPUS, []),
    (other_code, "its code is not that of the other nodes", 76, [], []),
    (other_config, "its config has other values in optim", 76, [], []),
    (other_corpus, "it has another corpus", 76, [], []),
    (other_versions, r"it has transformers 4\.0\.1 \(the others", 76, [], []),
    (clock_off, r"its clock is (59|60|61) s behind", 76, [], []),
    (other_bits, "its CPU gives other bits for the same matrix product", 76, [], []),
    (cut_off, "it exchanges no data with node[13] and with node[13]", 76, [], []),
    (no_repository, "it gives no answer; its last words, if any, stand above", 76, [], []),
    (slow_card, r"its network gives .* MiB/s and the others'", 76, [], []),
    (None, r"run_dir has .* GiB free, and checkpoint.keep \+ 1 checkpoints need", 74, [], [HUGE, "model.path=null"]),
    (None, "torch sees 0 GPUs, and 4 were requested", 69, GPUS, []),
]


@pytest.fixture
def site(gpu_cluster: Cluster, tmp_path: Path) -> Site:
    for folder in ("run/logs", "bin", "corpus"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "corpus" / "MANIFEST.json").write_text('{"version": 5}')
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.write_text('#!/bin/sh\nfor i in 0 1 2 3; do echo "GPU $i: NVIDIA H100 80GB HBM3 (UUID: GPU-$i)"; done\n')
    smi.chmod(0o755)
    return Site(gpu_cluster, tmp_path)


def overrides(site: Site) -> list[str]:
    return ["experiment=demo", f"run_dir={site.folder / 'run'}", f"data.prepared={site.folder / 'corpus'}"]


def environment(site: Site, gpus: Sequence[str]) -> dict[str, str]:
    """Without GPUs there is no nvidia-smi either. Data travels over eth1."""
    search = os.environ["PATH"]
    processes = "4" if gpus else "1"
    return {
        "PATH": f"{site.folder / 'bin'}{os.pathsep}{search}" if gpus else search,
        "GLOO_SOCKET_IFNAME": "eth1",
        "CORRAL_NPROC": processes,
        "CORRAL_PYTHON": sys.executable,
    }


def looked(site: Site, options: Sequence[str] = (), more: Sequence[str] = ()) -> tuple[int, str]:
    """Exit code and words of the preflight in an allocation of all three nodes."""
    command = ["salloc", "--quiet", "--nodes=3", *options, str(ROOT / "slurm" / "preflight.sh"), "attempt=0"]
    done = site.cluster.ask(*command, *overrides(site), *more, environment=environment(site, options))
    return done.returncode, done.stderr


def test_fit_nodes_are_measured(site: Site) -> None:
    code, words = looked(site)
    assert code == 0, words
    found = re.search(r"3 nodes are fit, in ([0-9.]+) s; all-reduce [0-9.]+ [MG]iB/s [0-9.]+ ms", words)
    assert found, words
    assert float(found[1]) <= 20
    for node in ("node1", "node2", "node3"):
        assert re.search(rf"{node} [0-9.]+ [MG]iB/s [0-9.]+ ms", words), words
    assert not list((site.folder / "run" / "logs").glob(".preflight*"))


def test_a_job_names_the_bad_node_and_goes_on_without_it(site: Site) -> None:
    """slurm/train.sh: the words in its log, the verdict in exit.json, and a requeue onto the third node."""
    run_dir, log, record = site.folder / "run", site.folder / "job.log", site.folder / "calls"
    python = site.folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "fake_python.py"} "$@"\n')
    python.chmod(0o755)
    played = {"FAKE_PLAY": "[0]", "REAL_PREFLIGHT": "1", "FAKE_RUN_DIR": str(run_dir), "FAKE_RECORD": str(record)}
    variables = {**environment(site, []), **played, "CORRAL_PYTHON": str(python), "REAL_PYTHON": sys.executable}
    command = ["sbatch", "--parsable", "--nodes=2", f"--output={log}", str(ROOT / "slurm" / "train.sh")]
    with read_only(site):
        job = site.cluster.run(*command, *overrides(site), environment=variables).strip()
        done = site.cluster.wait(job, 90)
    words = log.read_text()
    assert (done["JobState"], done["Restarts"], done["ExcNodeList"]) == ("COMPLETED", "1", BAD), words
    assert done["NodeList"] == "node[1,3]"
    said = f"node2: it cannot write to run_dir={run_dir} (Read-only file system); put run_dir on a file system that all"
    assert f"corral: preflight: {said}" in words
    assert f"corral: attempt 0 ended with 76 at step 0: preflight: {said}" in words
    assert re.search(r"corral: preflight: 2 nodes are fit, in [0-9.]+ s; all-reduce", words)
    assert json.loads((run_dir / "exit.json").read_text())["code"] == 0
    hosts = [json.loads(line)["host"] for line in record.read_text().splitlines() if '"launch.node"' in line]
    assert sorted(hosts) == ["node1", "node3"], "training began on the fit nodes alone"


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=[pytest.mark.slow] if place % 4 else []) for place, fault in enumerate(FAULTS)],
    ids=[plant.__name__ if plant else said[:16] for plant, said, *_ in FAULTS],
)
def test_the_fault_is_named(site: Site, fault: Fault) -> None:
    plant, said, code, options, more = fault
    with ExitStack() as stack:
        if plant:
            stack.enter_context(plant(site))
        found, words = looked(site, options, more)
    assert found == code, words
    where = f"{BAD}: " if plant else ""
    sentences = [line for line in words.splitlines() if line.startswith("corral: preflight: ")]
    assert len(sentences) == 2, words
    assert re.match(rf"corral: preflight: {where}.*{said}", sentences[0]), words
    took = re.fullmatch(r"corral: preflight: not fit, in ([0-9.]+) s", sentences[1])
    assert took, words
    assert float(took[1]) <= 20
    record = json.loads((site.folder / "run" / "exit" / "attempt-0-rank-0.json").read_text())
    assert record["code"] == code
    assert record["reason"] == f"preflight: {sentences[0].removeprefix('corral: preflight: ')}"
    bad = list((site.folder / "run" / "exit").glob("bad-nodes-*"))
    assert [path.read_text() for path in bad] == ([f"{BAD}\n"] if plant else [])
