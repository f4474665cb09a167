"""Allow-list of webhooks: an address may be called if its host is in the setting `webhook_hosts`.

Checked when a webhook is registered and again at every delivery, because the list can change in between.
"""

from collections.abc import Sequence

import httpx

DEFAULT_PORTS = {"http": 80, "https": 443}


class HostNotAllowed(Exception):
    """The lab does not call this address; the text says why."""


def check(text: str, allowed: Sequence[str]) -> None:
    """Raises HostNotAllowed unless `text` is an http(s) URL of a host in `allowed`, without credentials.

    An entry `host` allows every port, `host:port` only that one. Names are compared but not resolved: the
    operator is responsible for their addresses.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise HostNotAllowed(f"not an address: {error}") from error
    if url.scheme not in DEFAULT_PORTS:
        raise HostNotAllowed(f"the scheme is {url.scheme!r}; use http or https")
    if url.userinfo or url.fragment:
        raise HostNotAllowed("the address must not contain user, password or fragment")
    host, port = _name(url), url.port or DEFAULT_PORTS[url.scheme]
    if {(host, None), (host, port)}.isdisjoint(map(parse_entry, allowed)):
        listed = ", ".join(allowed) or "no host"
        raise HostNotAllowed(f"{host}:{port} is not in GRAFTLAB_WEBHOOK_HOSTS, which names {listed}")


def parse_entry(entry: str) -> tuple[str, int | None]:
    """Return (host, port) of an entry of the list; no port means all. Raises ValueError."""
    try:
        url = httpx.URL(f"//{entry}")
    except httpx.InvalidURL as error:
        raise ValueError(f"{entry!r} is not a host: {error}") from error
    if not url.host or url.userinfo or url.raw_path != b"/" or entry.endswith("/") or "%" in url.host:
        raise ValueError(f"{entry!r} is neither `host` nor `host:port`")
    return _name(url), url.port


def _name(url: httpx.URL) -> str:
    """Return the host in ASCII and lower case, without a trailing dot."""
    return url.raw_host.decode("ascii").lower().rstrip(".")
