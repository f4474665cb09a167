"""End long answers when their caller loses the right to them."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.types import Message, Send

RECHECK_SECONDS = 2.5
"""Time between checks of the rights behind an open answer."""


class Watched:
    """One answer, during which `still_may` is checked repeatedly."""

    def __init__(self, send: Send, still_may: Callable[[], Awaitable[bool]]) -> None:
        self._send, self._still_may = send, still_may
        self._limit = asyncio.timeout(None)
        self._watch: asyncio.Task[None] | None = None
        self._sized = False

    async def run(self, answer: Callable[[Send], Awaitable[None]]) -> None:
        """Run `answer` until it ends or the rights do."""
        try:
            async with self._limit:
                await answer(self._pass_on)
        except TimeoutError:
            if not self._limit.expired():
                raise
            await self._end()
        finally:
            if self._watch is not None:
                self._watch.cancel()

    async def _pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._sized = any(name.lower() == b"content-length" for name, _ in message["headers"])
        elif message.get("more_body") and self._watch is None:
            self._watch = asyncio.create_task(self._look())
        await self._send(message)

    async def _look(self) -> None:
        while await self._still_may():
            await asyncio.sleep(RECHECK_SECONDS)
        self._limit.reschedule(asyncio.get_running_loop().time())

    async def _end(self) -> None:
        """End a stream; a file of announced size stays short instead, and the connection closes."""
        if not self._sized:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
