"""Principals behind the secrets of requests, looked up in the database and cached for seconds."""

import time
from hashlib import sha256

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from service.db.engine import Database
from service.db.tables import now
from service.domain.api_keys import Principal, find_principal, note_use, use_is_due

REMEMBERED_SECONDS = 5.0
"""Time for which the result of a look-up is used, counted from the start of the look-up."""
REMEMBERED = 10_000
clock = time.monotonic


class Callers:
    """Cache of the keys and sessions of one application; invalid ones are cached too."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._valid: dict[str, tuple[Principal, float]] = {}
        self._refused: dict[str, float] = {}

    def seen(self, secret: str) -> Principal | None:
        """Return the principal that the last look-up of this secret found, however old."""
        return self._valid.get(_name(secret), (None, 0.0))[0]

    async def who(self, secret: str, *, fresh: bool = False) -> Principal | None:
        """Return the principal of a secret; `fresh` bypasses the cache. Raises SQLAlchemyError."""
        name, moment = _name(secret), clock()
        if not fresh and self._refused.get(name, 0.0) > moment:
            return None
        principal, until = self._valid.get(name, (None, 0.0))
        if principal is None or fresh or until < moment:
            principal = await run_in_threadpool(self._look_up, secret)
            self._remember(name, principal, moment + REMEMBERED_SECONDS)
        expired = principal and principal.expires_at and principal.expires_at <= now()
        return None if expired else principal

    def _remember(self, name: str, principal: Principal | None, until: float) -> None:
        for known in (self._valid, self._refused):
            if len(known) >= REMEMBERED:
                known.clear()
        if principal is None:
            self._valid.pop(name, None)
            self._refused[name] = until
        else:
            self._refused.pop(name, None)
            self._valid[name] = principal, until

    def _look_up(self, secret: str) -> Principal | None:
        with self._database.reading() as session:
            principal = find_principal(session, secret, ("key", "session"))
            if principal is None or principal.key_id is None:
                return principal
            due = use_is_due(session, principal.key_id)
        if due:
            self._note_use(principal.key_id)
        return principal

    def _note_use(self, key_id: int) -> None:
        try:
            with self._database.writing() as session:
                note_use(session, key_id)
        except SQLAlchemyError:
            return  # requests that only read still work where writing fails, as on a full disk


def _name(secret: str) -> str:
    return sha256(secret.encode(errors="replace")).hexdigest()
