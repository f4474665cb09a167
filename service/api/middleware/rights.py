"""Rights that an address needs: the role, and whether it concerns the whole lab."""

import posixpath
import re
from urllib.parse import unquote

from service.domain.api_keys import ROLES
from service.domain.tracking_endpoints import PREFIX, Refused, right_for
from service.schemas.runs import Role

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
VIEWER_POSTS = ("/api/v1/experiments/plan", "/api/v1/login-links")
"""POST requests that change nothing in the lab."""
ADMIN_PATHS = ("/api/v1/keys", "/api/v1/admin", "/api/v1/scions:gc", "/api/v1/webhooks")
LAB_PATHS = ("/metrics", PREFIX, "/api/v1/scions:verify")
"""Paths that show the runs of all users."""


def needed_role(method: str, path: str) -> Role:
    """Return the role that a request needs; an unknown path that changes something needs a runner.

    Every spelling of a path needs at least the role of the plain path that it could be read as.
    """
    roles = (_role(method, path), _role(method, plain(path)))
    return max(roles, key=ROLES.index)


def _role(method: str, path: str) -> Role:
    if _under(path, ADMIN_PATHS):
        return "admin"
    if path.startswith(f"{PREFIX}/"):
        return _needed_in_mlflow(method, path)
    return "viewer" if method in SAFE_METHODS or path in VIEWER_POSTS else "runner"


def _needed_in_mlflow(method: str, path: str) -> Role:
    """Return the role for a path of MLflow; its pages search with POST.

    Endpoints that the lab does not serve are refused later, for every role.
    """
    try:
        right = right_for(method, path.removeprefix(PREFIX))
    except Refused:
        return "viewer"
    return "admin" if right == "lab" else right


def is_of_the_lab(path: str) -> bool:
    """Check whether this path is closed to keys that see only their own runs."""
    return _under(path, LAB_PATHS) or _under(plain(path), LAB_PATHS)


def _under(path: str, parts: tuple[str, ...]) -> bool:
    return any(path == part or path.startswith(f"{part}/") for part in parts)


def plain(path: str) -> str:
    """Normalize a path as the most lenient reader would: decoded, without dots, parameters and case."""
    while (decoded := unquote(path)) != path:
        path = decoded
    path = re.sub(r";[^/]*", "", path.replace("\\", "/").lower())
    return posixpath.normpath(re.sub("/+", "/", f"/{path}"))
