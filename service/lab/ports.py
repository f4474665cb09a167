"""Ports that stay free until their process uses them, and the processes that listen on a port."""

import random
import socket
from contextlib import suppress
from pathlib import Path

import psutil

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST, USUAL_EPHEMERAL = 20_000, 32_768
"""Lowest port to choose: below it, Ray keeps ports for its workers."""
TRIES = 100
LOOPBACK = "127.0.0.1"
BACKLOG = 2048


class NoFreePort(OSError):
    """All tried ports are taken, or the requested one may not be used."""


class Claims:
    """Ports that one lab has chosen; no other lab on this machine chooses them while they are held.

    A port is held by a UDP socket of the same number, which is never read: the TCP port itself stays free
    for the process that will listen there.
    """

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}

    def claim(self, preferred: int = 0) -> int:
        """Return the preferred port if it is free, else another. Raises NoFreePort."""
        for port in _candidates(preferred):
            if self.take(port):
                return port
        raise _no_port()

    def take(self, port: int) -> bool:
        """Claim this port; False if it is used or another lab has chosen it."""
        if not is_free(port):
            return False
        if port in self._held:
            return True
        held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            held.bind((LOOPBACK, port))
        except OSError:
            held.close()
            return False
        self._held[port] = held
        return True

    def release(self, port: int) -> None:
        """Release a port that is used by another program or no longer needed."""
        held = self._held.pop(port, None)
        if held is not None:
            held.close()

    def close(self) -> None:
        for port in list(self._held):
            self.release(port)


def listen(host: str, preferred: int, claims: Claims) -> socket.socket:
    """Return a socket that listens at the host, on the preferred port if it is free. Raises NoFreePort.

    It can be passed from one process to the next, so that no other program can take the port in between.
    """
    for port in _candidates(preferred):
        if not claims.take(port):
            continue
        try:
            return _listening(host, port)
        except OSError:  # another program took it in this moment
            claims.release(port)
    raise _no_port()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def is_address(host: str) -> bool:
    """Check whether this machine can listen on the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def _no_port() -> NoFreePort:
    return NoFreePort(f"none of {TRIES} ports between {LOWEST} and {_ephemeral()} is free")


def _candidates(preferred: int) -> list[int]:
    """Return the preferred port, then some at random.

    They lie below the system's ephemeral ports: between choice and use pass seconds, in which a starting
    cluster takes dozens of those.
    """
    return [*([preferred] if preferred else []), *random.sample(range(LOWEST, _ephemeral()), TRIES)]


def is_free(port: int) -> bool:
    """Check whether a port is free on all addresses. Raises NoFreePort if this user may not use it."""
    with socket.socket() as probe:
        # Connections that have just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except PermissionError as error:
            raise NoFreePort(f"port {port} is reserved for the system; choose one above 1023") from error
        except OSError:
            return False
    return True


def _ephemeral() -> int:
    """Return the lower end of the system's ephemeral ports."""
    try:
        return max(LOWEST + TRIES, int(EPHEMERAL.read_text().split()[0]))
    except (OSError, ValueError, IndexError):
        return USUAL_EPHEMERAL


def listeners(port: int) -> list[psutil.Process]:
    """Return this user's processes that listen on this port of any address."""
    pids = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr
        and connection.laddr.port == port
        and connection.pid
    }
    processes = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):  # it has ended since
            processes.append(psutil.Process(pid))
    return processes
