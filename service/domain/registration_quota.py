"""How many bytes an owner may register: what is registered counts, and what is reserved meanwhile."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from grafting_core.specs.registration import RegistrationSpec
from service.db.registry_tables import RegisteredRow
from service.db.tables import AccountRow


class RegistrationQuota(ValueError):
    """The owner has registered or reserved as many bytes as they may."""


def with_reservation(session: Session, owner: str, work: RegistrationSpec) -> RegistrationSpec:
    """Return the work with the bytes that its registration may have at most, which `begin` reserves.

    These are all that are left of the owner's quota, unless the work names fewer. Raises RegistrationQuota.
    The owner's account stays locked until the transaction ends, so two submissions never reserve the same.
    """
    if work.action == "verify":
        return work
    left = left_of(session, owner)
    if left is None:
        return work
    size = left if work.max_bytes is None else work.max_bytes
    if left <= 0 or size > left:
        raise RegistrationQuota(_refusal(session, owner, work.max_bytes, left))
    return work.model_copy(update={"max_bytes": size})


def left_of(session: Session, owner: str) -> int | None:
    """Bytes that the owner may still register; None without a quota. Locks the owner's account."""
    account = session.get(AccountRow, ("user", owner), with_for_update=True, populate_existing=True)
    if account is None or account.max_registered_bytes is None:
        return None
    return account.max_registered_bytes - _bytes(session, owner, ("ready", "damaged", "registering"))


def _bytes(session: Session, owner: str, states: tuple[str, ...]) -> int:
    query = select(func.sum(RegisteredRow.size))
    mine = query.where(RegisteredRow.owner == owner, RegisteredRow.state.in_(states))
    return int(session.scalar(mine) or 0)


def _refusal(session: Session, owner: str, size: int | None, left: int) -> str:
    stored = _bytes(session, owner, ("ready", "damaged"))
    reserved = _bytes(session, owner, ("registering",))
    named = "" if size is None else f", not {size:,}"
    text = f"{owner} may register {max(0, left):,} bytes more{named}: {stored:,} are registered"
    if not reserved:
        return f"{text}; remove something first"
    return (
        f"{text}, and registrations under way reserve {reserved:,}; wait for their end, or give each of "
        "them a max_bytes"
    )
