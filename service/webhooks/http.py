"""Send one POST to a webhook: bounded in time, without following redirects or reading the body."""

import asyncio
import ssl
from collections.abc import Mapping

import httpx


class Undelivered(Exception):
    """No answer came, or none that is HTTP; the text says what happened."""


def post(url: str, headers: Mapping[str, str], body: bytes, *, seconds: float) -> int:
    """Send `body` and return the status of the answer, whatever it is. Raises Undelivered.

    `seconds` bounds the whole exchange. httpx refuses an answer whose head is longer than 100 kB. Proxies
    and credentials of the environment are not used; certificates are checked against the system's
    authorities.
    """
    try:
        return asyncio.run(_post(url, headers, body, seconds))
    except TimeoutError as error:
        raise Undelivered(f"no answer within {seconds:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Undelivered(str(error) or type(error).__name__) from error


async def _post(url: str, headers: Mapping[str, str], body: bytes, seconds: float) -> int:
    async with (
        asyncio.timeout(seconds),
        httpx.AsyncClient(verify=ssl.create_default_context(), trust_env=False, timeout=seconds) as client,
        client.stream("POST", url, headers=headers, content=body, follow_redirects=False) as answer,
    ):
        return answer.status_code
