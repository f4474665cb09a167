"""Routes of keys: make, list, change, revoke, and one-time links that open the pages in a browser."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import Field
from sqlalchemy.orm import Session

from grafting_core.specs.base import Frozen
from grafting_core.specs.documents.errors import Problem, SpecError
from service.api.deps import LabDep
from service.api.documents import DocumentRoute
from service.api.problems import ApiError
from service.db.tables import KeyRow
from service.domain.api_keys import Principal, change_rights, list_keys, make_key, revoke
from service.schemas.keys import KeyMade, KeyView, LoginLink, Whoami
from service.schemas.runs import Role, Sees

router = APIRouter(tags=["keys"], route_class=DocumentRoute)


class KeyRequest(Frozen):
    """Owner and rights of a new key."""

    owner: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._@-]+$")]
    role: Role = "runner"
    sees: Sees = "lab"
    registers: bool = False
    """Whether it may register backbones, data sets and feature networks."""
    days: Annotated[int, Field(ge=1, le=3650)] | None = None


class KeyChange(Frozen):
    """Changes to a key; fields left out stay as they are."""

    role: Role | None = None
    sees: Sees | None = None
    registers: bool | None = None
    days: Annotated[int, Field(ge=1, le=3650)] | None = None
    """Days from now until the key expires."""


KeyId = Annotated[int, Path(ge=1, lt=2**31)]


@router.post("/keys", status_code=201)
def create_key(body: KeyRequest, lab: LabDep) -> KeyMade:
    """Create a key. Its secret is in this answer and nowhere else."""
    _check_together(body.role, body.sees)
    with lab.database.writing() as session:
        rights = Principal(owner=body.owner, role=body.role, sees=body.sees, registers=body.registers)
        row, secret = make_key(session, rights, days=body.days)
        return KeyMade(**_view(row).model_dump(), key=secret)


@router.get("/keys")
def show_keys(lab: LabDep) -> list[KeyView]:
    """List all keys, newest first, without their secrets."""
    with lab.database.reading() as session:
        return [_view(row) for row in list_keys(session)]


@router.patch("/keys/{key_id}")
def change_key(
    key_id: KeyId,
    body: KeyChange,
    lab: LabDep,
) -> KeyView:
    """Change the rights or the expiry of a key; fields left out stay as they are."""
    with lab.database.writing() as session:
        row = _find(session, key_id)
        change_rights(row, body.role, body.sees, body.days, body.registers)
        _check_together(row.role, row.sees)
        return _view(row)


def _check_together(role: str, sees: str) -> None:
    """Raises SpecError: an admin can change every key and run, so it must see them all."""
    if role == "admin" and sees == "own":
        message = "an admin's key sees the whole lab; give it another role, or sees: lab"
        raise SpecError([Problem(pointer="/sees", code="conflict", message=message, given=sees)])


def _find(session: Session, key_id: int) -> KeyRow:
    row = session.get(KeyRow, key_id, with_for_update=True)
    if row is None or row.kind != "key":
        raise ApiError("not-found", f"there is no key {key_id}")
    return row


@router.delete("/keys/{key_id}")
def revoke_key(key_id: KeyId, lab: LabDep) -> KeyView:
    """End a key and its browser sessions within seconds. Repeating it changes nothing."""
    with lab.database.writing() as session:
        row = revoke(session, key_id)
        if row is None:
            raise ApiError("not-found", f"there is no key {key_id}")
        return _view(row)


@router.post("/login-links", status_code=201)
def create_login_link(lab: LabDep) -> LoginLink:
    """Create an address that opens the pages in a browser, once, within ten minutes, with this key's
    rights.
    """
    with lab.database.writing() as session:
        row, code = make_key(session, lab.principal, kind="login")
    assert row.expires_at is not None
    return LoginLink(path=f"/login?code={code}", expires_at=row.expires_at)


@router.get("/whoami")
def whoami(lab: LabDep) -> Whoami:
    """Return the owner, role and expiry of the key that was sent."""
    who = lab.principal
    return Whoami(
        owner=who.owner,
        role=who.role,
        sees=who.sees,
        registers=who.may_register,
        expires_at=who.expires_at,
    )


def _view(row: KeyRow) -> KeyView:
    times: dict[str, datetime | None] = {
        name: getattr(row, name) for name in ("created_at", "expires_at", "revoked_at", "last_used_at")
    }
    rights = {"role": row.role, "sees": row.sees, "registers": row.registers}
    return KeyView(id=row.id, prefix=row.prefix, owner=row.owner, **rights, **times)
