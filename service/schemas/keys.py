"""What the REST API answers about keys; the client parses the same classes."""

from datetime import datetime

from service.schemas.runs import Role, Sees, View


class KeyView(View):
    """A key without its secret; `prefix` is how the secret begins."""

    id: int
    prefix: str
    owner: str
    role: Role
    sees: Sees
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class KeyMade(KeyView):
    """The one answer that holds the secret."""

    key: str


class LoginLink(View):
    """Where a browser gets in, once."""

    path: str
    expires_at: datetime


class Whoami(View):
    """Whom a key stands for."""

    owner: str
    role: Role
    sees: Sees
    expires_at: datetime | None = None
