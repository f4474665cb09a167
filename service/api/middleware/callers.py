"""Whom the secrets of requests stand for: looked up in the database, remembered for seconds."""

import time
from hashlib import sha256

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from service.db.engine import Database
from service.db.tables import now
from service.domain.api_keys import Principal, find_principal, note_use, use_is_due

REMEMBERED_SECONDS = 5.0
"""How long what a look-up found is taken for true, counted from its beginning."""
REMEMBERED = 10_000
clock = time.monotonic


class Callers:
    """Keys and sessions of one application; those that are not valid are remembered as such."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._valid: dict[str, tuple[Principal, float]] = {}
        self._refused: dict[str, float] = {}

    def seen(self, secret: str) -> Principal | None:
        """Whom the secret stood for when it was last looked up."""
        return self._valid.get(_name(secret), (None, 0.0))[0]

    async def who(self, secret: str, *, fresh: bool = False) -> Principal | None:
        """Whom the secret stands for, where asked `fresh` from the database. Raises SQLAlchemyError."""
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
            return  # reading goes on where writing cannot, on a full disk for one


def _name(secret: str) -> str:
    return sha256(secret.encode(errors="replace")).hexdigest()
