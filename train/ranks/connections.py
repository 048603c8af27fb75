"""What the kernel does about a connection whose other side is silent: a cut cable closes nothing.

Without this, who waits for data behind a cut link waits for ever, and who has sent some for 16 minutes. The collectives
of tensors have a timeout of their own; those of objects wait for hours, because a rank may be busy for so long. Its
kernel answers all the same, so silence of the kernel means that link or host is gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

SILENT_S = 300
"""Longer than a switch or a bond takes to come back."""
PROBE_S = 30


def end_silent_connections(seconds: int = SILENT_S) -> None:
    """Have every TCP connection that this process has now fail once its other side's kernel is silent for ``seconds``.

    gloo's receivers say that they are ready before a sender sends, so no data waits that long for a busy rank. Linux
    only; elsewhere the connections stay as they are.
    """
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as connection:
            if connection.type == socket.SOCK_STREAM and connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in (
                    (socket.TCP_KEEPIDLE, min(PROBE_S, seconds)),
                    (socket.TCP_KEEPINTVL, min(PROBE_S, seconds)),
                    (socket.TCP_USER_TIMEOUT, seconds * 1000),
                ):
                    connection.setsockopt(socket.IPPROTO_TCP, option, value)
