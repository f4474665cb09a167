"""Which addresses the lab may call: public ones, and the hosts that its operator names.

Looked at when a webhook is registered and again at every connection, because names can change their address.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence

import httpx

LONGEST = 2000
ODD = re.compile(r"[\s\\\x00-\x1f\x7f]")
NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)", re.IGNORECASE)
UNICAST = ipaddress.ip_network("2000::/3")
"""All of IPv6 that is handed out to hosts on the public network."""
TUNNELS = tuple(map(ipaddress.ip_network, ("2001::/32", "2002::/16")))
"""Teredo and 6to4 carry an IPv4 address inside, any of them."""

Resolve = Callable[[str, int], list[str]]
"""Host and port -> every address, as text."""


class Blocked(Exception):
    """The lab does not call this address; the text says why."""


def resolve(host: str, port: int) -> list[str]:
    """Every address that the system knows for a host. Raises Blocked where it knows none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Blocked(f"{host} cannot be looked up ({error})") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def read_url(text: str) -> httpx.URL:
    """An http(s) URL without credentials, whose host is a name or a plainly written address.

    Raises Blocked.
    """
    if len(text) > LONGEST or ODD.search(text):
        raise Blocked(f"not an address of at most {LONGEST} characters without blanks")
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise Blocked(f"not an address: {error}") from error
    if url.scheme not in ("http", "https"):
        raise Blocked(f"the scheme is {url.scheme!r}; http and https are called")
    if url.port is not None and not 0 < url.port < 65_536:
        raise Blocked(f"there is no port {url.port}")
    if url.userinfo or url.fragment or not url.host:
        raise Blocked("give a host, and neither user nor password nor fragment")
    _refuse_odd_numbers(host_of(url))
    return url


def host_of(url: httpx.URL) -> str:
    """As it is looked up: ASCII, lower case, without a last dot."""
    return url.raw_host.decode("ascii").lower().rstrip(".")


def port_of(url: httpx.URL) -> int:
    return url.port or {"http": 80, "https": 443}[url.scheme]


def _refuse_odd_numbers(host: str) -> None:
    """Resolvers read 2130706433, 0x7f.1 and 0177.0.0.1 as addresses; people should not have to."""
    if not NUMBER.fullmatch(host.rpartition(".")[2]):
        return
    try:
        ipaddress.IPv4Address(host)
    except ValueError as error:
        raise Blocked(f"write the address {host} as four decimal numbers") from error


def checked_addresses(host: str, port: int, named: Sequence[str], look_up: Resolve = resolve) -> list[str]:
    """Every address of a host; all of them may be called. Raises Blocked.

    `named`: hosts, or `host:port`, that may be on a private network. Link-local addresses, behind which
    clouds keep their credentials, are never called.
    """
    found = look_up(host, port)
    trusted = host in named or f"{host}:{port}" in named
    for text in found:
        address = ipaddress.ip_address(text.partition("%")[0])
        if address.is_link_local or not (trusted or is_public(address)):
            where = "" if host == str(address) else f"is at {address}, which "
            raise Blocked(f"{host} {where}is not on the public network")
    return found


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether a host anywhere on the internet can have this address."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address not in UNICAST or any(address in tunnel for tunnel in TUNNELS):
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def check(text: str, named: Sequence[str], look_up: Resolve = resolve) -> httpx.URL:
    """A URL that may be called as things are now. Raises Blocked."""
    url = read_url(text)
    checked_addresses(host_of(url), port_of(url), named, look_up)
    return url
