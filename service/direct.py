"""Proxies of the user's environment are not for what runs on this machine."""

import os
from collections.abc import Iterable, MutableMapping
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def reach_directly(environment: MutableMapping[str, str], urls: Iterable[str] = ()) -> None:
    """Name loopback, and the hosts of these addresses, in NO_PROXY, beside what the user has there."""
    hosts = [*LOOPBACK, *filter(None, (urlsplit(url).hostname for url in urls))]
    given = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    named = [part.strip() for part in given.split(",") if part.strip()]
    both = ",".join([*named, *(host for host in dict.fromkeys(hosts) if host not in named)])
    # Both spellings: some libraries read one, some the other.
    environment["no_proxy"] = environment["NO_PROXY"] = both


def clear_mlflow(environment: MutableMapping[str, str]) -> None:
    """Take out what the user has set for an MLflow of his own."""
    for name in [name for name in environment if name.lstrip("_").startswith("MLFLOW_")]:
        del environment[name]


def reach_mlflow(url: str, token: str | None) -> None:
    """Have MLflow's client in this process ask this server directly, with this token where there is one."""
    reach_directly(os.environ, [url])
    if token:
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_AUTH"):
            os.environ.pop(name, None)
        os.environ["MLFLOW_TRACKING_TOKEN"] = token
