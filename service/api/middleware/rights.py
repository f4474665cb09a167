"""What an address asks for: which role, and whether it is about the whole lab."""

import posixpath
import re
from urllib.parse import unquote

from service.domain.api_keys import ROLES
from service.domain.tracking_endpoints import PREFIX, Refused, right_for
from service.schemas.runs import Role

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
VIEWER_POSTS = ("/api/v1/experiments/plan", "/api/v1/login-links")
"""They store nothing of the lab's."""
ADMIN_PATHS = ("/api/v1/keys", "/api/v1/admin", "/api/v1/scions:gc", "/api/v1/webhooks")
LAB_PATHS = ("/metrics", PREFIX, "/api/v1/scions:verify")
"""They tell of everybody's runs, whoever asks."""


def needed_role(method: str, path: str) -> Role:
    """What an address asks for. Unknown ones that change something ask for a runner.

    However an address is spelt, it never asks for less than the plain address it could be taken for.
    """
    asked = (_role(method, path), _role(method, plain(path)))
    return max(asked, key=ROLES.index)


def _role(method: str, path: str) -> Role:
    if _under(path, ADMIN_PATHS):
        return "admin"
    if path.startswith(f"{PREFIX}/"):
        return _needed_in_mlflow(method, path)
    return "viewer" if method in SAFE_METHODS or path in VIEWER_POSTS else "runner"


def _needed_in_mlflow(method: str, path: str) -> Role:
    """MLflow's pages search with POST. What the lab does not serve of it is refused to everybody, later."""
    try:
        right = right_for(method, path.removeprefix(PREFIX))
    except Refused:
        return "viewer"
    return "admin" if right == "lab" else right


def is_of_the_lab(path: str) -> bool:
    """Whether this address is closed to those who see only what is their own."""
    return _under(path, LAB_PATHS) or _under(plain(path), LAB_PATHS)


def _under(path: str, parts: tuple[str, ...]) -> bool:
    return any(path == part or path.startswith(f"{part}/") for part in parts)


def plain(path: str) -> str:
    """The address as the most lenient reader would take it: decoded, without dots, parameters and case."""
    while (decoded := unquote(path)) != path:
        path = decoded
    path = re.sub(r";[^/]*", "", path.replace("\\", "/").lower())
    return posixpath.normpath(re.sub("/+", "/", f"/{path}"))
