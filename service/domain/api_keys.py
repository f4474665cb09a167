"""API keys, login codes and browser sessions in one table; secrets are stored as digests only."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.db.tables import KeyRow, now
from service.schemas.runs import KeyKind, Role, Sees

ROLES: tuple[Role, ...] = ("viewer", "runner", "admin")
"""Roles in ascending order; each may do everything that the ones before it may."""

LIVES: dict[KeyKind, timedelta | None] = {
    "key": None,
    "login": timedelta(minutes=10),
    "session": timedelta(days=7),
}
LAST_USED_STEP = timedelta(minutes=1)
PREFIX_LENGTH = 12


@dataclass(frozen=True)
class Principal:
    """User behind a request, with the role, key and expiry that apply."""

    owner: str
    role: Role
    sees: Sees = "lab"
    key_id: int | None = None
    kind: KeyKind = "key"
    expires_at: datetime | None = None
    rights_from: int | None = None
    """Id of the key that grants these rights: a session's own row grants none."""
    registers: bool = False

    @property
    def only_owner(self) -> str | None:
        """Owner whose objects alone are shown, or None if the whole lab is."""
        return self.owner if self.sees == "own" else None

    def may(self, role: Role) -> bool:
        """Check whether this principal's role includes the given one."""
        return ROLES.index(self.role) >= ROLES.index(role)

    @property
    def may_register(self) -> bool:
        """Check the right to register, which is granted apart from the role; admins have it."""
        return self.role == "admin" or (self.may("runner") and self.registers)

    def may_change(self, owner: str) -> bool:
        """Check the right to change objects of `owner`: runners change their own, admins everything."""
        return self.role == "admin" or (self.may("runner") and self.owner == owner)


def make_key(
    session: Session,
    principal: Principal,
    *,
    kind: KeyKind = "key",
    days: int | None = None,
    secret: str | None = None,
) -> tuple[KeyRow, str]:
    """Create a key that acts as `principal`; return it with its secret of 256 random bits, which is not
    stored.

    If the principal itself came from a key, later look-ups use that key's rights instead of the row's.
    """
    secret = secret or f"gl{kind[0]}_{secrets.token_urlsafe(32)}"
    life = timedelta(days=days) if days else LIVES[kind]
    row = KeyRow(
        kind=kind,
        prefix=secret[:PREFIX_LENGTH],
        digest=_digest(secret),
        owner=principal.owner,
        role=principal.role,
        sees=principal.sees,
        registers=principal.registers,
        parent_id=principal.key_id,
        expires_at=now() + life if life else None,
    )
    session.add(row)
    session.flush()
    return row, secret


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def find_principal(session: Session, secret: str, kinds: tuple[KeyKind, ...]) -> Principal | None:
    """Return the principal of a secret; None if it or a key that it depends on is unknown, expired or
    revoked.

    Login codes and sessions act with the current rights of their key, until the first of them expires.
    """
    query = select(KeyRow).where(KeyRow.prefix == secret[:PREFIX_LENGTH])
    # Compared in constant time, with a dummy if there is no row, so that all failures take equally long.
    rows = session.scalars(query).all()
    matching = [row for row in rows if hmac.compare_digest(row.digest, _digest(secret))]
    if not rows:
        hmac.compare_digest(_digest(""), _digest(secret))
    if not matching or matching[0].kind not in kinds:
        return None
    line = _line(session, matching[0])
    return _principal(line) if all(map(_is_valid, line)) else None


def _line(session: Session, row: KeyRow) -> list[KeyRow]:
    """Return a row and its parents, up to the key that it acts for."""
    line = [row]
    while line[-1].parent_id is not None:
        line.append(session.get_one(KeyRow, line[-1].parent_id))
    return line


def _is_valid(row: KeyRow) -> bool:
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > now())


def _principal(line: list[KeyRow]) -> Principal:
    shown, key = line[0], line[-1]
    return Principal(
        owner=key.owner,
        role=key.role,
        sees=key.sees,
        key_id=shown.id,
        kind=shown.kind,
        expires_at=min((row.expires_at for row in line if row.expires_at), default=None),
        rights_from=key.id,
        registers=key.registers,
    )


def use_is_due(session: Session, key_id: int) -> bool:
    """Check whether the recorded last use is at least a minute old."""
    last = session.scalar(select(KeyRow.last_used_at).where(KeyRow.id == key_id))
    return last is None or last < now() - LAST_USED_STEP


def note_use(session: Session, key_id: int) -> None:
    """Record that a key was used, to the minute."""
    due = KeyRow.last_used_at.is_(None) | (KeyRow.last_used_at < now() - LAST_USED_STEP)
    session.execute(update(KeyRow).where(KeyRow.id == key_id, due).values(last_used_at=now()))


def use_login_code(session: Session, code: str) -> str | None:
    """Exchange a login code, once, for the secret of a new session; None if the code is not or no longer
    valid.
    """
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
    return make_key(session, replace(principal, key_id=parent), kind="session")[1]


def revoke(session: Session, key_id: int) -> KeyRow | None:
    """Revoke a key and with it every session that it opened. Repeating it changes nothing."""
    row = session.get(KeyRow, key_id)
    if row is not None and row.kind == "key":
        row.revoked_at = row.revoked_at or now()
        return row
    return None


def change_rights(
    row: KeyRow, role: Role | None, sees: Sees | None, days: int | None, registers: bool | None = None
) -> None:
    """Change the rights or the expiry of a key; None keeps the current value."""
    row.role, row.sees = role or row.role, sees or row.sees
    row.registers = row.registers if registers is None else registers
    row.expires_at = now() + timedelta(days=days) if days else row.expires_at


def list_keys(session: Session) -> list[KeyRow]:
    """List keys of people and programs, newest first, without sessions."""
    query = select(KeyRow).where(KeyRow.kind == "key").order_by(KeyRow.id.desc())
    return list(session.scalars(query))


def ensure_admin(session: Session, secret: str) -> None:
    """Store the lab's first key in its database; if it was revoked, it stays revoked."""
    if session.scalar(select(KeyRow.id).where(KeyRow.digest == _digest(secret))) is None:
        make_key(session, Principal(owner="lab", role="admin"), secret=secret)
