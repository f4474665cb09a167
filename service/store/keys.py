"""API keys, login codes and browser sessions: one table, secrets kept as digests only."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.api.schemas import Role, Sees
from service.store.models import KeyRow, now

Kind = Literal["key", "login", "session"]
ROLES: tuple[Role, ...] = ("viewer", "runner", "admin")
"""Each may do what the ones before it may."""

LIVES: dict[Kind, timedelta | None] = {
    "key": None,
    "login": timedelta(minutes=10),
    "session": timedelta(days=7),
}
LAST_USED_STEP = timedelta(minutes=1)
PREFIX_LENGTH = 12


@dataclass(frozen=True)
class Principal:
    """Who asks: a user in a role, by which key, until when."""

    owner: str
    role: Role
    sees: Sees = "lab"
    key_id: int | None = None
    kind: Kind = "key"
    expires_at: datetime | None = None

    @property
    def only_owner(self) -> str | None:
        """The owner whose objects alone are shown, or None where all of the lab is."""
        return self.owner if self.sees == "own" else None

    def may(self, role: Role) -> bool:
        """Whether this principal's role includes the given one."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def may_change(self, owner: str) -> bool:
        """Runners change what is theirs, admins everything."""
        return self.role == "admin" or (self.may("runner") and self.owner == owner)


def make_key(
    session: Session,
    principal: Principal,
    *,
    kind: Kind = "key",
    days: int | None = None,
    secret: str | None = None,
) -> tuple[KeyRow, str]:
    """A new key that acts as `principal`, and its secret, which is kept nowhere. 256 bits of chance."""
    secret = secret or f"gl{kind[0]}_{secrets.token_urlsafe(32)}"
    life = timedelta(days=days) if days else LIVES[kind]
    row = KeyRow(
        kind=kind,
        prefix=secret[:PREFIX_LENGTH],
        digest=_digest(secret),
        owner=principal.owner,
        role=principal.role,
        sees=principal.sees,
        parent_id=principal.key_id,
        expires_at=now() + life if life else None,
    )
    session.add(row)
    session.flush()
    return row, secret


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def find_principal(session: Session, secret: str, kinds: tuple[Kind, ...]) -> Principal | None:
    """Whom a secret stands for; None where it is unknown, expired or revoked, or its parent is."""
    query = select(KeyRow).where(KeyRow.prefix == secret[:PREFIX_LENGTH])
    # Compared in constant time, with something where there is nothing, so that all failures look alike.
    rows = session.scalars(query).all()
    found = [row for row in rows if hmac.compare_digest(row.digest, _digest(secret))]
    if not rows:
        hmac.compare_digest(_digest(""), _digest(secret))
    row = found[0] if found else None
    while row is not None and _is_valid(row):
        if row.parent_id is None:
            return principal_of(found[0]) if found[0].kind in kinds else None
        row = session.get(KeyRow, row.parent_id)
    return None


def _is_valid(row: KeyRow) -> bool:
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > now())


def principal_of(row: KeyRow) -> Principal:
    return Principal(
        owner=row.owner,
        role=row.role,  # type: ignore[arg-type]  # the column holds nothing else
        sees=row.sees,  # type: ignore[arg-type]
        key_id=row.id,
        kind=row.kind,  # type: ignore[arg-type]
        expires_at=row.expires_at,
    )


def note_use(session: Session, key_id: int) -> None:
    """Keep when a key was last used, to the minute."""
    due = KeyRow.last_used_at.is_(None) | (KeyRow.last_used_at < now() - LAST_USED_STEP)
    session.execute(update(KeyRow).where(KeyRow.id == key_id, due).values(last_used_at=now()))


def use_login_code(session: Session, code: str) -> str | None:
    """Trade a login code, once, for a new session's secret. None where it is not valid (any more)."""
    principal = find_principal(session, code, ("login",))
    if principal is None:
        return None
    taken = session.execute(
        update(KeyRow)
        .where(KeyRow.id == principal.key_id, KeyRow.revoked_at.is_(None))
        .values(revoked_at=now())
    )
    if not taken.rowcount:  # type: ignore[attr-defined]  # an update has one
        return None
    parent = session.get_one(KeyRow, principal.key_id).parent_id
    owner = Principal(owner=principal.owner, role=principal.role, sees=principal.sees, key_id=parent)
    return make_key(session, owner, kind="session")[1]


def revoke(session: Session, key_id: int) -> KeyRow | None:
    """End a key, and with it every session it opened. Twice is once."""
    row = session.get(KeyRow, key_id)
    if row is not None and row.kind == "key":
        row.revoked_at = row.revoked_at or now()
        return row
    return None


def change_rights(row: KeyRow, role: Role | None, sees: Sees | None, days: int | None) -> None:
    """Give a key other rights or another end; None leaves what is."""
    row.role, row.sees = role or row.role, sees or row.sees
    row.expires_at = now() + timedelta(days=days) if days else row.expires_at


def list_keys(session: Session) -> list[KeyRow]:
    """Keys of people and programs, newest first; sessions are not shown."""
    query = select(KeyRow).where(KeyRow.kind == "key").order_by(KeyRow.id.desc())
    return list(session.scalars(query))


def ensure_admin(session: Session, secret: str) -> None:
    """Make the lab's first key known to its database; one that was revoked stays so."""
    if session.scalar(select(KeyRow.id).where(KeyRow.digest == _digest(secret))) is None:
        make_key(session, Principal(owner="lab", role="admin"), secret=secret)
