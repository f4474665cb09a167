"""Extras that commands need beyond the client, and how to install them."""

from importlib.util import find_spec

from service.cli.console import Refused

NEEDED = {
    "core": ("torch", "diffusers"),
    "lab": ("torch", "diffusers", "ray", "mlflow", "sqlalchemy", "fastapi", "uvicorn"),
}
"""Extra -> packages that it needs."""


def require(extra: str, command: str) -> None:
    """Raise Refused, naming the extra of this package to install, if a command lacks packages."""
    missing = [name for name in NEEDED[extra] if find_spec(name) is None]
    if missing:
        raise Refused(
            [
                f"`graft {command}` needs {', '.join(missing)}, which is not installed; "
                f"pip install 'graftlab[{extra}]' installs it"
            ]
        )
