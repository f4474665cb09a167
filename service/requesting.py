"""What every request of the client has in common: sound addresses and keys, pages, and refusals."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import httpx


class ApiProblem(Exception):
    """The service refused; `problem` is its problem+json document."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status, self.problem = status, problem
        super().__init__(problem.get("detail") or problem.get("title") or f"status {status}")

    @property
    def lines(self) -> list[str]:
        """One readable line a problem."""
        errors = self.problem.get("errors") or []
        told = [f"{e.get('pointer') or '(document)'}: {e.get('message')}" for e in errors] or [str(self)]
        left_out = self.problem.get("left_out")
        return [*told, f"and {left_out:,} more"] if left_out else told


class LabUnreachable(Exception):
    """No lab answers at the address."""


class CannotBeSent(ValueError):
    """An address, a key or a name that no request can carry."""


class Paged(Protocol):
    """An answer that may have others after it."""

    @property
    def next_cursor(self) -> str | int | None: ...


P = TypeVar("P", bound=Paged)


def checked_address(url: str) -> str:
    """An http(s) address without a trailing slash. Raises CannotBeSent."""
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError, ValueError):
        address = None
    if address is None or not _is_of_a_lab(address):
        raise CannotBeSent(f"{url!r} is no address of a lab; write one such as http://127.0.0.1:8000")
    return url.rstrip("/")


def _is_of_a_lab(address: httpx.URL) -> bool:
    there = address.scheme in ("http", "https") and address.host != ""
    return there and (address.port or 80) < 2**16 and not address.query and not address.fragment


def checked_key(key: str) -> str:
    """A key as it can stand in a header. Raises CannotBeSent, without telling the key."""
    if not (key.isascii() and key.isprintable()):
        raise CannotBeSent("the key holds characters that no key has; copy it again, it begins with glk_")
    return key


def pages(ask: Callable[[Any], P]) -> Iterator[P]:
    """Pages by their cursors, to the last."""
    cursor = None
    while True:
        page = ask(cursor)
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return


def checked(answer: httpx.Response) -> httpx.Response:
    """The answer, where it is the one that was asked for. Raises ApiProblem."""
    if answer.is_success:
        return answer
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"detail": answer.text[:200] or f"status {answer.status_code}"}
    raise ApiProblem(answer.status_code, problem)
