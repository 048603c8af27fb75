"""What the libraries of communication read from a rank's environment, decided here before the process group exists.

However the ranks were started (``launch``, SLURM, plain torchrun), they get the same. A variable that the user set, or
NCCL's files of the cluster name, stays as it is.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from pathlib import Path

from train.ranks.group import Ranks

SIOCGIFADDR = 0x8915  # linux/sockios.h: IPv4 address of an interface

FORMER_NAMES = {
    "TORCH_FR_BUFFER_SIZE": "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "TORCH_FR_DUMP_TEMP_FILE": "TORCH_NCCL_DEBUG_INFO_TEMP_FILE",
}
"""torch still reads them, but the new name wins: setting it would override a user who set the former one."""

SHOWN = ("NCCL_", "GLOO_", "TORCH_NCCL_", "TORCH_FR_")


def prepare_environment(ranks: Ranks, dumps: Path | None = None) -> None:
    """Set what is not set: the interface for sockets, NCCL's warnings, and the flight recorder of NCCL's collectives.

    After a timeout the recorder writes one file per rank, ``dumps`` with the rank appended; None: in torch's own place.
    """
    own = {"NCCL_DEBUG": "WARN", "TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
    if dumps is not None:
        own["TORCH_FR_DUMP_TEMP_FILE"] = str(dumps)
    found = interface(ranks)
    if found is not None:
        # NCCL takes a name as a prefix (eth1 is eth10 too) unless "=" stands before it.
        own |= {"GLOO_SOCKET_IFNAME": found, "NCCL_SOCKET_IFNAME": f"={found}"}
    taken = {*os.environ, *named_in_files()}
    taken |= {name for name, former in FORMER_NAMES.items() if former in taken}
    os.environ.update({name: value for name, value in own.items() if name not in taken})


def environment_in_force() -> dict[str, str]:
    """Every variable of NCCL, gloo and torch's use of them, whoever set it, for the record of the run."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(SHOWN)}


def interface(ranks: Ranks) -> str | None:
    """The network interface over which the ranks reach each other: the loopback on one machine, else the one that
    leads to the first rank. None if it cannot be told (names that resolve to no interface's address); then NCCL and
    gloo choose."""
    if ranks.world <= ranks.local_world:
        return interface_of("127.0.0.1")  # a host's own name, which gloo asks for otherwise, does not always resolve
    try:
        return interface_of(own_address(os.environ["MASTER_ADDR"]))
    except OSError:
        return None


def own_address(head: str) -> str:
    """The IPv4 address from which this node reaches ``head``. Connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((head, 9))
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """Name of the network interface that has ``address``; None if none has."""
    return next((name for _, name in socket.if_nameindex() if address_of(name) == address), None)


def address_of(interface: str) -> str | None:
    """IPv4 address of a network interface; None if it has none, or there is no such interface."""
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24])
        except OSError:
            return None


def named_in_files() -> set[str]:
    """The variables that NCCL's own files set; for NCCL the environment wins over them, so it must not hold these."""
    user = os.environ.get("NCCL_CONF_FILE") or Path("~/.nccl.conf").expanduser()
    found: set[str] = set()
    for path in (Path(user), Path("/etc/nccl.conf")):
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:  # most machines have neither
            continue
        found |= {line.partition("=")[0].strip() for line in lines if "=" in line and not line.lstrip().startswith("#")}
    return found
