"""Keys on this machine: where the lab leaves its first one, and how clients find it."""

import json
import os
import secrets
import tempfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from service.locking import is_held

KEY_FILE = "admin-key"
MLFLOW_FILE = "mlflow-token"


def first_key(folder: Path) -> str:
    """The secret in a data folder, made where there is none; readable by its owner alone."""
    return _secret(folder / KEY_FILE, "glk_")


def mlflow_token(folder: Path) -> str:
    """What the lab's MLflow server asks for, made where there is none; readable by its owner alone."""
    return _secret(folder / MLFLOW_FILE, "glm_")


def _secret(file: Path, prefix: str) -> str:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not file.exists():
        # Whole or not at all: processes that start together must not read each other's empty file.
        with tempfile.NamedTemporaryFile("w", dir=file.parent) as made, suppress(FileExistsError):
            made.write(f"{prefix}{secrets.token_urlsafe(32)}")
            made.flush()
            os.link(made.name, file)
    return file.read_text().strip()


def _notes() -> Path:
    """Where this user's running labs are noted, so that an address alone leads to the data folder.

    Raises RuntimeError where the user has no home folder.
    """
    return Path(os.environ.get("GRAFTLAB_HOME") or Path.home() / ".graftlab") / "labs"


def _note(url: str) -> Path:
    return _notes() / f"{sha256(url.encode()).hexdigest()[:16]}.json"


def note_lab(url: str, folder: Path) -> None:
    """Remember which data folder the lab at this address has. Without a home folder there is no note."""
    with suppress(OSError, RuntimeError):
        _notes().mkdir(parents=True, exist_ok=True, mode=0o700)
        _note(url).write_text(json.dumps({"url": url, "data": str(folder)}))


def forget_lab(url: str) -> None:
    with suppress(OSError, RuntimeError):
        _note(url).unlink(missing_ok=True)


def find_key(url: str, given: str | None = None) -> str | None:
    """The key to show at an address: the given one, else GRAFTLAB_KEY, else that of this user's lab there.

    A lab that no longer runs has no address: who listens there now may be anybody, and is shown no key.
    """
    if given or os.environ.get("GRAFTLAB_KEY"):
        return given or os.environ["GRAFTLAB_KEY"]
    try:
        note = json.loads(_note(url.replace("//localhost", "//127.0.0.1")).read_text())
        folder = Path(note["data"])
        return (folder / KEY_FILE).read_text().strip() if is_held(folder) else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None


def key_header(url: str, given: str | None = None) -> dict[str, str]:
    """The header that shows the key for this address; none where there is no key."""
    found = find_key(url, given)
    return {"Authorization": f"Bearer {found}"} if found else {}
