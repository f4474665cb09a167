"""Keys on this machine: where the lab stores its first one, and how clients find it."""

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
    """Return the key in a data folder, made if there is none; only its owner can read it."""
    return _secret(folder / KEY_FILE, "glk_")


def mlflow_token(folder: Path) -> str:
    """Return the secret of the lab's MLflow server, made if there is none; only its owner can read it."""
    return _secret(folder / MLFLOW_FILE, "glm_")


def _secret(file: Path, prefix: str) -> str:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not file.exists():
        # Written completely or not at all: processes that start together must not read an empty file.
        with tempfile.NamedTemporaryFile("w", dir=file.parent) as new_file, suppress(FileExistsError):
            new_file.write(f"{prefix}{secrets.token_urlsafe(32)}")
            new_file.flush()
            os.link(new_file.name, file)
    return file.read_text().strip()


def _notes() -> Path:
    """Return the folder of notes about this user's running labs, by which a client finds the data folder.

    Raises RuntimeError if the user has no home folder.
    """
    return Path(os.environ.get("GRAFTLAB_HOME") or Path.home() / ".graftlab") / "labs"


def _note(url: str) -> Path:
    return _notes() / f"{sha256(url.encode()).hexdigest()[:16]}.json"


def note_lab(url: str, folder: Path) -> None:
    """Record the data folder of the lab at this address; without a home folder nothing is recorded."""
    with suppress(OSError, RuntimeError):
        _notes().mkdir(parents=True, exist_ok=True, mode=0o700)
        _note(url).write_text(json.dumps({"url": url, "data": str(folder)}))


def forget_lab(url: str) -> None:
    with suppress(OSError, RuntimeError):
        _note(url).unlink(missing_ok=True)


def find_key(url: str, key: str | None = None) -> str | None:
    """Return the key for an address: the given one, else GRAFTLAB_KEY, else that of this user's lab there.

    The key of a lab that no longer runs is not returned: any program may listen at its address now.
    """
    if key or os.environ.get("GRAFTLAB_KEY"):
        return key or os.environ["GRAFTLAB_KEY"]
    try:
        note = json.loads(_note(url.replace("//localhost", "//127.0.0.1")).read_text())
        folder = Path(note["data"])
        return (folder / KEY_FILE).read_text().strip() if is_held(folder) else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None


def key_header(url: str, key: str | None = None) -> dict[str, str]:
    """Return the header with the key for this address; empty if there is no key."""
    secret = find_key(url, key)
    return {"Authorization": f"Bearer {secret}"} if secret else {}
