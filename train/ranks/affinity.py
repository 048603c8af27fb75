"""A rank's CPUs: those beside its GPU. A rank on the far processor reads and writes its GPU over the link between both.

torchrun's ``--numa-binding`` does the same, but needs numactl installed and fails without it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

PCI_DEVICES = Path("/sys/bus/pci/devices")


def gpu_address(device: torch.device) -> str:
    """The GPU's name on the PCI bus, e.g. ``0000:1b:00.0``."""
    known: Any = torch.cuda.get_device_properties(device)
    return f"{known.pci_domain_id:04x}:{known.pci_bus_id:02x}:{known.pci_device_id:02x}.0"


def cpus_beside(address: str, devices: Path = PCI_DEVICES) -> set[int]:
    """The CPUs of the NUMA node to which the PCI device ``address`` belongs; empty if the kernel does not say."""
    try:
        listed = (devices / address / "local_cpulist").read_text(encoding="ascii").strip()
    except OSError:  # a container without /sys, a virtual machine that hides the bus
        return set()
    spans = (part.partition("-") for part in listed.split(",") if part)
    return {cpu for first, _, last in spans for cpu in range(int(first), int(last or first) + 1)}


def stay_on(near: set[int], processes: int) -> bool:
    """Keep this process's threads, and those they start, on the CPUs of ``near``, and say whether it was done.

    Only on CPUs that the process may use already (SLURM's, taskset's), and only if these are at least its share among
    the ``processes`` of this machine: a rank with too few CPUs is slower than one on the far side.
    """
    allowed = os.sched_getaffinity(0)
    if not near & allowed or len(near & allowed) * processes < len(allowed):
        return False
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or is bound elsewhere on purpose
            os.sched_setaffinity(int(thread.name), os.sched_getaffinity(int(thread.name)) & near)
    return True
