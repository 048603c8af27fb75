"""The GPUs of this machine, from NVIDIA's driver: torch stays out of here."""

from __future__ import annotations

import shutil
import subprocess

from conf.errors import Unavailable

SMI_S = 8.0
"""Seconds that nvidia-smi has to list the GPUs: it takes 1 to 3 where the driver has to wake them."""


def listed_gpus() -> list[str] | None:
    """The model of every GPU that the driver lists; None without NVIDIA's tools.

    Raises Unavailable if nvidia-smi gives no answer. One that hangs in the driver cannot be ended, so nobody waits.
    """
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "-L"]
    asked = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8")
    try:
        answer, _ = asked.communicate(timeout=SMI_S)
    except subprocess.TimeoutExpired:
        asked.kill()
        raise Unavailable(f"nvidia-smi gives no answer within {SMI_S:.0f} s; look at dmesg, restart the node") from None
    lines = [line for line in answer.splitlines() if line.startswith("GPU ")]
    return [line.partition(": ")[2].partition(" (UUID")[0] for line in lines]
