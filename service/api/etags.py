"""Versions of what can change, as ETags: read, then change only what has not changed meanwhile."""

from service.api.problems import ApiError
from service.db.tables import KeyRow, RunRow


def run_tag(run: RunRow) -> str:
    """Every event changes it, and so does a move in the queue."""
    return f'"{run.last_event}.{run.precedence}"'


def key_tag(row: KeyRow) -> str:
    """Rights and end of a key; use does not change it."""
    ends = [str(int(at.timestamp())) if at else "" for at in (row.expires_at, row.revoked_at)]
    return f'"{row.role}.{row.sees}.{".".join(ends)}"'


def names(header: str | None, tag: str) -> bool:
    """Whether an If-Match or If-None-Match header speaks of this version."""
    given = [part.strip() for part in (header or "").split(",")]
    return "*" in given or tag in given


def check(header: str | None, tag: str, *, required: bool = False) -> None:
    """Raises ApiError where the request is about another version, or about none though it has to be."""
    if header is None:
        if required:
            raise ApiError("precondition-required", "read it first, then send its ETag as If-Match")
    elif not names(header, tag):
        raise ApiError("precondition-failed", f"it is {tag} by now", headers={"ETag": tag})
