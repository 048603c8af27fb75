"""The environment and the CPUs of a rank: what is set, what stays, and what torch makes of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.distributed import run_distributed
from train.ranks.affinity import cpus_beside, stay_on
from train.ranks.determinism import NCCL_PINS
from train.ranks.environment import environment_in_force, interface_of, own_address, prepare_environment
from train.ranks.group import Ranks

ONE_NODE = Ranks(rank=1, world=2, local_rank=1, local_world=2)
TWO_NODES = Ranks(rank=1, world=2, local_world=1)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without a word about communication, restored afterwards."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in environment_in_force():
        monkeypatch.delenv(name)
    monkeypatch.setenv("NCCL_CONF_FILE", str(tmp_path / "nccl.conf"))


def in_force() -> dict[str, str]:
    return {name: value for name, value in environment_in_force().items() if name != "NCCL_CONF_FILE"}


def test_ranks_of_one_machine_meet_on_the_loopback(tmp_path: Path) -> None:
    prepare_environment(ONE_NODE, tmp_path / "flight-0-rank-")
    assert in_force() == {
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_DEBUG": "WARN",
        "NCCL_SOCKET_IFNAME": "=lo",
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_FR_DUMP_TEMP_FILE": str(tmp_path / "flight-0-rank-"),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }


def test_several_nodes_meet_where_the_first_rank_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for _, name in socket.if_nameindex()]
    others = [name for name in names if name != "lo" and own_address_on(name)]
    head, expected = ("127.0.0.1", "lo") if not others else (own_address_on(others[0]), others[0])
    monkeypatch.setenv("MASTER_ADDR", head)
    prepare_environment(TWO_NODES)
    assert in_force()["GLOO_SOCKET_IFNAME"] == expected
    assert in_force()["NCCL_SOCKET_IFNAME"] == f"={expected}"


def own_address_on(name: str) -> str:
    """The first of this machine's own addresses that belongs to the interface ``name``; empty if none does."""
    listed = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    return next((str(each[4][0]) for each in listed if interface_of(str(each[4][0])) == name), "")


def test_an_address_has_its_interface_or_none() -> None:
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None


def test_where_the_first_rank_cannot_be_found_the_libraries_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    prepare_environment(TWO_NODES)
    assert not any(name.endswith("IFNAME") for name in in_force())


def test_what_the_user_or_the_clusters_files_set_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torch prefers the new name of a variable to the former one, and NCCL the environment to its files."""
    own = {
        "GLOO_SOCKET_IFNAME": "ib0",
        "NCCL_DEBUG": "INFO",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "77",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/elsewhere/trace_",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    }
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "nccl.conf").write_text("# of the cluster\nNCCL_SOCKET_IFNAME = ib\n#NCCL_X=1\n\n")
    prepare_environment(ONE_NODE, tmp_path / "flight-0-rank-")
    assert in_force() == own


# Writes through torch's own writer, at its C++ address, for lack of a name in Python on a build without NCCL.
DUMP = """
import ctypes, sys
from pathlib import Path
import torch
from train.ranks.environment import prepare_environment
from train.ranks.group import Ranks

class String(ctypes.Structure):  # std::string of libstdc++ with a text of at most 15 bytes inside
    _fields_ = [("at", ctypes.c_void_p), ("size", ctypes.c_size_t), ("text", ctypes.c_char * 16)]

prepare_environment(Ranks(), Path(sys.argv[1]))
library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
writer = library._ZN4c10d15DebugInfoWriter9getWriterEi
writer.restype = ctypes.c_void_p
text = String(size=5, text=b"trace")
text.at = ctypes.addressof(text) + String.text.offset
write = library._ZN4c10d15DebugInfoWriter5writeERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE
write(ctypes.c_void_p(writer(3)), ctypes.byref(text))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads torch's library for Linux")
def test_torch_writes_its_flight_record_beside_the_logs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DUMP, str(tmp_path / "flight-2-rank-")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "flight-2-rank-3").read_text() == "trace"


def meet(ranks: Ranks) -> tuple[dict[str, str], float]:
    return environment_in_force(), ranks.sum([float(dist.get_rank())])[0]


def test_every_rank_has_it_however_it_was_started() -> None:
    """The ranks are given only torchrun's variables here, as by a plain torchrun."""
    for found, total in run_distributed(meet, 2):
        assert total == 1.0
        assert (found["GLOO_SOCKET_IFNAME"], found["NCCL_SOCKET_IFNAME"]) == ("lo", "=lo")
        assert found["NCCL_DEBUG"] == "WARN"


FIX = """
import json, os
os.environ["NCCL_PROTO"] = "LL128"
from train.ranks.determinism import fix_kernels
from train.ranks.environment import environment_in_force
fix_kernels()
print(json.dumps(environment_in_force()))
"""


def test_the_deterministic_profile_pins_nccl() -> None:
    done = subprocess.run([sys.executable, "-c", FIX], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout)
    assert {name: found[name] for name in NCCL_PINS} == {
        "NCCL_ALGO": "Ring",
        "NCCL_PROTO": "LL128",  # the user's
        "NCCL_MIN_NCHANNELS": "8",
        "NCCL_MAX_NCHANNELS": "8",
    }


def test_cpus_beside_a_gpu_are_read_from_the_kernel(tmp_path: Path) -> None:
    gpu = tmp_path / "0000:1b:00.0"
    gpu.mkdir()
    (gpu / "local_cpulist").write_text("0-3,96-97,200\n")
    assert cpus_beside("0000:1b:00.0", tmp_path) == {0, 1, 2, 3, 96, 97, 200}
    assert cpus_beside("0000:1c:00.0", tmp_path) == set()


BIND = """
import os, sys, threading
from train.ranks.affinity import stay_on
near, processes, end = set(map(int, sys.argv[1].split(","))), int(sys.argv[2]), threading.Event()
other = threading.Thread(target=end.wait)
other.start()
done = stay_on(near, processes)
print(done, sorted(os.sched_getaffinity(0)), sorted(os.sched_getaffinity(other.native_id)))
end.set()
"""


def bound(near: set[int], processes: int) -> str:
    command = [sys.executable, "-c", BIND, ",".join(map(str, near)), str(processes)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.strip()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux binds processes to CPUs")
def test_a_rank_stays_on_the_cpus_beside_its_gpu() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    absent = max(allowed) + 1000
    if len(allowed) == 1:
        pytest.skip("there is one CPU to choose from")
    half = allowed[: (len(allowed) + 1) // 2]
    assert bound({*half, absent}, 2) == f"True {half} {half}", "all threads, and none that the process may not use"
    assert bound({allowed[0]}, 1) == f"False {allowed} {allowed}", "fewer than its share of the machine"
    assert bound({absent}, 8) == f"False {allowed} {allowed}"
    assert not stay_on(set(), 8)
