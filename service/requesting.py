"""Transport of the client: addresses, keys, repeated requests, answers, pages, errors."""

import json
import time
from collections.abc import Callable, Iterator
from os import SEEK_END
from typing import Any, BinaryIO, Protocol, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from service.local_keys import find_key

PATIENCE_SECONDS = 5.0
RESTART_SECONDS = 60.0
"""Time to wait for a lab that has answered before: as long as a restart may take."""
IDEMPOTENT = ("GET", "PUT", "DELETE")
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Errors after which no part of the request has been sent."""


class ApiProblem(Exception):
    """The service refused the request; `problem` is its problem+json document."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status, self.problem = status, problem
        super().__init__(problem.get("detail") or problem.get("title") or f"status {status}")

    @property
    def lines(self) -> list[str]:
        """Return one readable line per problem."""
        errors = self.problem.get("errors") or []
        texts = [f"{e.get('pointer') or '(document)'}: {e.get('message')}" for e in errors] or [str(self)]
        left_out = self.problem.get("left_out")
        return [*texts, f"and {left_out:,} more"] if left_out else texts


class LabUnreachable(Exception):
    """No lab answers at the address."""


class CannotBeSent(ValueError):
    """An address, a key or a name that no request can carry."""


class Paged(Protocol):
    """An answer that may be followed by others."""

    @property
    def next_cursor(self) -> str | int | None: ...


M = TypeVar("M", bound=BaseModel)
P = TypeVar("P", bound=Paged)
V = TypeVar("V")


def checked_address(url: str) -> str:
    """Return an http(s) address without a trailing slash. Raises CannotBeSent."""
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError, ValueError):
        address = None
    if address is None or not _is_of_a_lab(address):
        raise CannotBeSent(f"{url!r} is not the address of a lab; write one such as http://127.0.0.1:8000")
    return url.rstrip("/")


def _is_of_a_lab(address: httpx.URL) -> bool:
    valid = address.scheme in ("http", "https") and address.host != ""
    return valid and (address.port or 80) < 2**16 and not address.query and not address.fragment


def checked_key(key: str) -> str:
    """Return a key that a header can carry. Raises CannotBeSent, without showing the key."""
    if not (key.isascii() and key.isprintable()):
        raise CannotBeSent("the key holds characters that no key has; copy it again, it begins with glk_")
    return key


def pages(request: Callable[[Any], P]) -> Iterator[P]:
    """Yield pages by their cursors, to the last."""
    cursor = None
    while True:
        page = request(cursor)
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return


def checked(answer: httpx.Response) -> httpx.Response:
    """Return a successful answer. Raises ApiProblem for any other."""
    if answer.is_success:
        return answer
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"detail": answer.text[:200] or f"status {answer.status_code}"}
    raise ApiProblem(answer.status_code, problem)


class Transport:
    """Blocking requests to one lab with one key."""

    def __init__(self, url: str, timeout: float = 30.0, key: str | None = None) -> None:
        """Connect; without a key, use GRAFTLAB_KEY, else the one that `graft up` stored on this machine.

        Raises CannotBeSent if the address or the key is not valid.
        """
        self.url = checked_address(url)
        self._patience = PATIENCE_SECONDS
        secret = find_key(self.url, key)
        headers = {"Authorization": f"Bearer {checked_key(secret)}"} if secret else {}
        self._http = httpx.Client(
            base_url=f"{self.url}/api/v1", headers=headers, timeout=timeout, trust_env=False
        )

    def _ask(self, method: str, path: str, *, again: bool = False, **request: Any) -> httpx.Response:
        """Send a request, and repeat it while no lab answers or the service is not ready.

        A request that may have arrived is repeated only if that does no harm: by its method, by an
        Idempotency-Key, or because the caller passes `again`.
        """
        if "json" in request:
            # Encoded here: null is a document too, and lone surrogates are escaped.
            request["content"] = json.dumps(request.pop("json"))
            request["headers"] = {"Content-Type": "application/json", **request.get("headers", {})}
        again = again or method in IDEMPOTENT or "Idempotency-Key" in request.get("headers", {})
        end, pause = time.monotonic() + self._patience, 0.2
        while True:
            over = time.monotonic() + pause > end
            try:
                answer = self._http.request(method, path, **request)
            except (httpx.InvalidURL, UnicodeError) as error:
                raise CannotBeSent(f"{path!r} cannot be requested: {error}") from error
            except httpx.RequestError as error:
                self._give_up(error, over, again)
            else:
                self._patience = RESTART_SECONDS
                if over or not (answer.status_code == 429 or (again and answer.status_code == 503)):
                    return checked(answer)
            time.sleep(pause)
            pause = min(2.0, 2 * pause)

    def _give_up(self, error: httpx.RequestError, over: bool, again: bool) -> None:
        """Raises LabUnreachable unless the request can be sent once more."""
        if not again and not isinstance(error, NOT_SENT):
            text = (
                f"{self.url} did not answer; the request may have been carried out: check before repeating it"
            )
            raise LabUnreachable(text) from error
        if over:
            raise LabUnreachable(f"no lab answers at {self.url}; `graft up` starts one") from error

    def _parse(self, model: type[M], answer: httpx.Response) -> M:
        return self._parsed(TypeAdapter(model), answer)

    def _parse_list(self, model: type[M], answer: httpx.Response) -> list[M]:
        return self._parsed(TypeAdapter(list[model]), answer)  # type: ignore[valid-type]  # built at run time

    def _parsed(self, adapter: TypeAdapter[V], answer: httpx.Response) -> V:
        try:
            return adapter.validate_json(answer.content)
        except ValidationError as error:
            raise LabUnreachable(f"the program at {self.url} is not a lab of this version") from error

    def _pieces(self, path: str) -> Iterator[bytes]:
        try:
            with self._http.stream("GET", path) as answer:
                if answer.is_error:
                    answer.read()
                yield from checked(answer).iter_bytes()
        except httpx.TransportError as error:
            raise LabUnreachable(f"{self.url} broke off its answer; try again") from error

    def _continue(self, path: str, file: BinaryIO) -> None:
        """Append the rest of an answer to a file that holds its beginning, or replace that by all of it."""
        done = file.seek(0, SEEK_END)
        headers = {"Range": f"bytes={done}-"} if done else {}
        try:
            with self._http.stream("GET", path, headers=headers) as answer:
                if answer.is_error:
                    answer.read()
                if checked(answer).status_code != httpx.codes.PARTIAL_CONTENT:
                    file.truncate(0)
                for piece in answer.iter_bytes():
                    file.write(piece)
        except httpx.TransportError as error:
            raise LabUnreachable(f"{self.url} broke off its answer; try again") from error
