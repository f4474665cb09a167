"""Ports that stay free until their process takes them, and who listens on one."""

import random
import socket
from contextlib import suppress
from pathlib import Path

import psutil

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST, USUAL_EPHEMERAL = 20_000, 32_768
"""Below, Ray keeps ports for its workers."""
TRIES = 100


class NoFreePort(OSError):
    """Every port that was tried is taken."""


def free_port(preferred: int = 0) -> int:
    """The preferred port if it is free on all addresses, else any that is. Raises NoFreePort.

    Below the range from which the system serves callers and whoever asks for any port: between the choice
    and its use lie seconds, in which a cluster that starts takes dozens of those.
    """
    candidates = random.sample(range(LOWEST, _ephemeral()), TRIES)
    for port in ([preferred] if preferred else []) + candidates:
        with socket.socket() as probe:
            # Connections that have just ended do not matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise NoFreePort(f"none of {TRIES} ports between {LOWEST} and {_ephemeral()} is free")


def _ephemeral() -> int:
    """Where the range begins of ports that the system gives away."""
    try:
        return max(LOWEST + TRIES, int(EPHEMERAL.read_text().split()[0]))
    except (OSError, ValueError, IndexError):
        return USUAL_EPHEMERAL


def listeners(port: int) -> list[psutil.Process]:
    """Our user's processes that listen on this port of any address."""
    pids = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr
        and connection.laddr.port == port
        and connection.pid
    }
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):  # it has ended since
            found.append(psutil.Process(pid))
    return found
