"""Bypass the user's proxies for connections on this machine."""

import os
from collections.abc import Iterable, MutableMapping
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def reach_directly(environment: MutableMapping[str, str], urls: Iterable[str] = ()) -> None:
    """Add loopback and the hosts of these addresses to NO_PROXY; entries of the user are kept."""
    hosts = [*LOOPBACK, *filter(None, (urlsplit(url).hostname for url in urls))]
    current = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    named = [part.strip() for part in current.split(",") if part.strip()]
    both = ",".join([*named, *(host for host in dict.fromkeys(hosts) if host not in named)])
    # Both spellings: libraries read one or the other.
    environment["no_proxy"] = environment["NO_PROXY"] = both


def clear_mlflow(environment: MutableMapping[str, str]) -> None:
    """Remove the user's settings for an MLflow of their own."""
    for name in [name for name in environment if name.lstrip("_").startswith("MLFLOW_")]:
        del environment[name]


def reach_mlflow(url: str, token: str | None) -> None:
    """Make MLflow's client in this process use this server directly, with this token if there is one."""
    reach_directly(os.environ, [url])
    if token:
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_AUTH"):
            os.environ.pop(name, None)
        os.environ["MLFLOW_TRACKING_TOKEN"] = token
