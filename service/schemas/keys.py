"""Responses about keys; the client parses the same classes."""

from datetime import datetime

from service.schemas.runs import Role, Sees, View


class KeyView(View):
    """A key without its secret; `prefix` is the beginning of the secret."""

    id: int
    prefix: str
    owner: str
    role: Role
    sees: Sees
    registers: bool = False
    """Whether it may register backbones, data sets and feature networks; admins may."""
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class KeyMade(KeyView):
    """A new key with its secret, which no other answer holds."""

    key: str


class LoginLink(View):
    """Path that logs a browser in, once."""

    path: str
    expires_at: datetime


class Whoami(View):
    """Owner and rights of a key."""

    owner: str
    role: Role
    sees: Sees
    registers: bool = False
    expires_at: datetime | None = None
