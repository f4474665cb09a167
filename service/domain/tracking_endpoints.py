"""Endpoints of MLflow that the lab serves, with the role each needs. All others are refused."""

import json
import re
from typing import Any, Literal
from urllib.parse import urlsplit

PREFIX = "/mlflow"
"""Path under which the lab serves MLflow, and under which MLflow's server answers."""
Right = Literal["viewer", "runner", "admin", "lab"]
"""`lab` is the forwarder, which has the lab's own secret."""
API = "/(?:ajax-)?api/[23][.]0/mlflow"
SAFE_PATH = re.compile(r"/(?:[^/\\%\x00-\x1f]+(?:/[^/\\%\x00-\x1f]+)*/?)?")
OURS = "graftlab."
"""Prefix of the tags by which the forwarder finds its runs."""

VIEWER = (
    ("GET", "/(?:health|version|get-artifact|static-files/.+)?"),
    ("GET POST", "/graphql"),
    ("GET", f"{API}/experiments/(?:get|get-by-name|search|search-datasets)"),
    ("GET", f"{API}/(?:runs/get|artifacts/list|metrics/get-history(?:-bulk(?:-interval)?)?)"),
    ("GET", f"{API}/(?:registered-models|model-versions)/(?:get|search)"),
    ("GET", f"{API}/(?:logged-models/[^/]+|datasets/search|server-info)"),
    ("GET", "/(?:ajax-)?api/2[.]0/mlflow-artifacts/artifacts(?:/.+)?"),
    ("POST", f"{API}/(?:experiments/search(?:-datasets)?|(?:runs|logged-models|traces|datasets)/search)"),
)
"""Endpoints that only read. MLflow's pages search with POST."""
RUNNER = (
    ("POST", f"{API}/experiments/create"),
    ("POST", f"{API}/runs/(?:create|update|delete|restore|set-tag|delete-tag|log-inputs)"),
    ("POST", f"{API}/runs/(?:log-batch|log-metric|log-parameter)"),
)
ADMIN = (("POST", f"{API}/experiments/(?:update|delete|restore|set-experiment-tag|delete-experiment-tag)"),)
LAB = (("PUT", "/api/2[.]0/mlflow-artifacts/artifacts/.+"),)
RIGHTS: dict[Right, tuple[tuple[str, str], ...]] = {
    "viewer": VIEWER,
    "runner": RUNNER,
    "admin": ADMIN,
    "lab": LAB,
}
RULES = [
    (right, frozenset(methods.split()), re.compile(pattern))
    for right, rules in RIGHTS.items()
    for methods, pattern in rules
]


class Refused(Exception):
    """The lab does not serve this request to MLflow; the text says what and why."""


def right_for(method: str, path: str) -> Right:
    """Return the right that a path below the prefix needs. Raises Refused if the lab does not serve it."""
    if not SAFE_PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise Refused(f"the path {path[:200]!r} is not one of MLflow's")
    method = "GET" if method == "HEAD" else method
    for right, methods, pattern in RULES:
        if method in methods and pattern.fullmatch(path):
            return right
    raise Refused(
        f"the lab does not serve {method} {path[:200]} of MLflow; it serves reading runs and logging metrics"
    )


def check_body(path: str, body: bytes) -> dict[str, Any]:
    """Return the JSON object of a request that changes something. Raises Refused.

    The caller may not choose where artifacts are kept: a location of its own would let it read the files
    of the lab's user through MLflow.
    """
    try:
        document = json.loads(body or b"{}", object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body of {path} is not a JSON object with each key once") from error
    if not isinstance(document, dict):
        raise Refused(f"the body of {path} is {type(document).__name__}, not a JSON object")
    for name, value in document.items():
        if re.sub("[^a-z]", "", name.lower()) in LOCATIONS and value:
            raise Refused(
                f"the field {name} is not allowed: the lab keeps artifacts in its own folder; leave it out"
            )
    return document


LOCATIONS = ("artifactlocation", "artifacturi", "source", "storagelocation")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a key appears twice")
    return document


def names_ours(document: dict[str, Any]) -> bool:
    """Check whether a request sets or removes a tag by which the forwarder finds its runs."""
    tags = document.get("tags")
    keys = [tag.get("key") for tag in tags if isinstance(tag, dict)] if isinstance(tags, list) else []
    return any(str(key).startswith(OURS) for key in [document.get("key"), *keys])


def link(experiment_id: str | None, run_id: str | None) -> str | None:
    """Return the address of an MLflow run relative to the lab's address; None if there is none."""
    if not experiment_id or not run_id:
        return None
    return f"{PREFIX}/#/experiments/{experiment_id}/runs/{run_id}"


def server_url(url: str, path: str) -> str:
    """Return the address of a path on MLflow's own server. Raises Refused if it has none."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise Refused(f"GRAFTLAB_MLFLOW_URL is {url}, which is not an http(s) address")
    return url.rstrip("/") + path
