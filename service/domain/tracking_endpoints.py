"""What of MLflow's interface the lab serves, and whom each part asks for. What is not named is refused."""

import json
import re
from typing import Any, Literal
from urllib.parse import urlsplit

PREFIX = "/mlflow"
"""Where the lab shows MLflow; its server answers under the same path."""
Right = Literal["viewer", "runner", "admin", "lab"]
"""`lab` is the forwarder alone, which has the lab's own secret."""
API = "/(?:ajax-)?api/[23][.]0/mlflow"
SAFE_PATH = re.compile(r"/(?:[^/\\%\x00-\x1f]+(?:/[^/\\%\x00-\x1f]+)*/?)?")
OURS = "graftlab."
"""Begins the tags by which the forwarder finds its runs again."""

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
"""Reading. MLflow's pages search with POST."""
RUNNER = (
    ("POST", f"{API}/experiments/create"),
    ("POST", f"{API}/runs/(?:create|update|delete|restore|set-tag|delete-tag|log-inputs)"),
    ("POST", f"{API}/runs/(?:log-batch|log-metric|log-parameter)"),
)
ADMIN = (("POST", f"{API}/experiments/(?:update|delete|restore|set-experiment-tag|delete-experiment-tag)"),)
LAB = (("PUT", "/api/2[.]0/mlflow-artifacts/artifacts/.+"),)
ASKED: dict[Right, tuple[tuple[str, str], ...]] = {
    "viewer": VIEWER,
    "runner": RUNNER,
    "admin": ADMIN,
    "lab": LAB,
}
RULES = [
    (right, frozenset(methods.split()), re.compile(pattern))
    for right, rules in ASKED.items()
    for methods, pattern in rules
]


class Refused(Exception):
    """What was asked of MLflow is not served; the text says what and why."""


def right_for(method: str, path: str) -> Right:
    """Whom an address below the prefix asks for. Raises Refused where the lab does not serve it."""
    if not SAFE_PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise Refused(f"the path {path[:200]!r} is not one of MLflow's")
    method = "GET" if method == "HEAD" else method
    for right, methods, pattern in RULES:
        if method in methods and pattern.fullmatch(path):
            return right
    raise Refused(f"the lab does not serve {method} {path[:200]} of MLflow; it shows runs and takes figures")


def check_body(path: str, body: bytes) -> dict[str, Any]:
    """The JSON object of a request that changes something. Raises Refused.

    Where artifacts are kept is the lab's choice: a location of the caller's own would let him read the
    files of the lab's user through MLflow.
    """
    try:
        document = json.loads(body or b"{}", object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body of {path} is not a JSON object with each key once") from error
    if not isinstance(document, dict):
        raise Refused(f"the body of {path} is {type(document).__name__}, not a JSON object")
    for name, value in document.items():
        if re.sub("[^a-z]", "", name.lower()) in LOCATIONS and value:
            raise Refused(f"{name} was given; the lab keeps artifacts in its own folder, leave it out")
    return document


LOCATIONS = ("artifactlocation", "artifacturi", "source", "storagelocation")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key appears twice")
    return found


def names_ours(document: dict[str, Any]) -> bool:
    """Whether a request sets or removes a tag by which the forwarder finds its runs."""
    tags = document.get("tags")
    keys = [tag.get("key") for tag in tags if isinstance(tag, dict)] if isinstance(tags, list) else []
    return any(str(key).startswith(OURS) for key in [document.get("key"), *keys])


def link(experiment_id: str | None, run_id: str | None) -> str | None:
    """Where the lab shows a run of MLflow's, relative to the lab's own address; None where there is none."""
    if not experiment_id or not run_id:
        return None
    return f"{PREFIX}/#/experiments/{experiment_id}/runs/{run_id}"


def server_url(url: str, path: str) -> str:
    """The address of a path below the prefix on MLflow's own server. Raises Refused where it has none."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise Refused(f"GRAFTLAB_MLFLOW_URL is {url}, which is no server's address")
    return url.rstrip("/") + path
