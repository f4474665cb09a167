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
LOOPBACK = "127.0.0.1"
BACKLOG = 2048


class NoFreePort(OSError):
    """Every port that was tried is taken, or the one that was asked for may not be used."""


class Claims:
    """Ports that one lab has chosen. No other lab on this machine chooses them while these are held.

    Held by a UDP socket of the same number, which nothing reads: the TCP port itself stays free for the
    process that is to listen there.
    """

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}

    def claim(self, preferred: int = 0) -> int:
        """The preferred port if nobody has it, else another. Raises NoFreePort."""
        for port in _candidates(preferred):
            if self.take(port):
                return port
        raise _no_port()

    def take(self, port: int) -> bool:
        """Whether this port is ours to use: it is free, and no other lab has chosen it."""
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
        """Somebody else has it after all, or it is needed no longer."""
        held = self._held.pop(port, None)
        if held is not None:
            held.close()

    def close(self) -> None:
        for port in list(self._held):
            self.release(port)


def listen(host: str, preferred: int, claims: Claims) -> socket.socket:
    """A socket that listens at the host, on the preferred port if it is free. Raises NoFreePort.

    Whoever holds it can hand it to one process after another, and nobody takes the port in between.
    """
    for port in _candidates(preferred):
        if not claims.take(port):
            continue
        try:
            return _listening(host, port)
        except OSError:  # somebody took it in this moment
            claims.release(port)
    raise _no_port()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def is_address(host: str) -> bool:
    """Whether this machine can listen there."""
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
    """The one that is asked for, then some at random.

    Below the range from which the system serves callers and whoever asks for any port: between the choice
    and its use lie seconds, in which a cluster that starts takes dozens of those.
    """
    return [*([preferred] if preferred else []), *random.sample(range(LOWEST, _ephemeral()), TRIES)]


def is_free(port: int) -> bool:
    """On all addresses. Raises NoFreePort where this user may not have it at all."""
    with socket.socket() as probe:
        # Connections that have just ended do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except PermissionError as error:
            raise NoFreePort(f"port {port} is the system's own; choose one above 1023") from error
        except OSError:
            return False
    return True


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
