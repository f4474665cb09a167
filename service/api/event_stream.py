"""Stream the events of runs: one reader polls the database for any number of listeners.

A stream holds no database connection and runs no query of its own while it waits.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from grafting_core.specs.private_names import hide
from service.db.engine import Database
from service.db.tables import RunRow
from service.domain.run_queries import events_after
from service.domain.visibility import hide_runs
from service.schemas.runs import TERMINAL, RunEvent

log = logging.getLogger("graftlab.api")
POLL_SECONDS = 0.25
KEEP_ALIVE_SECONDS = 15.0
KEPT = 1000
"""Events of a run kept in memory for its listeners; a listener further behind reads the database."""
PAGE = 500
END = "event: end\ndata: {}\n\n"


@dataclass
class Subscription:
    """One run that has listeners. `texts` are the events numbered from `first` + 1 on."""

    first: int
    ended: bool = False
    texts: list[str] = field(default_factory=list)
    listeners: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def last(self) -> int:
        return self.first + len(self.texts)

    def add(self, events: Sequence[RunEvent], ended: bool) -> None:
        self.texts += [_text(event) for event in events]
        self.first += max(0, len(self.texts) - KEPT)
        self.texts = self.texts[-KEPT:]
        self.ended = ended
        self.changed.set()
        self.changed = asyncio.Event()


class Listened(NamedTuple):
    """A run, and the owner whose runs its listeners may see (None: all); other runs' events are not sent."""

    run_id: str
    owner: str | None


class EventBroadcaster:
    """Subscriptions of one application, filled by one task that runs while there are any."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._channels: dict[Listened, Subscription] = {}
        self._task: asyncio.Task[None] | None = None

    async def follow(self, run_id: str, after: int, owner: str | None = None) -> AsyncIterator[str]:
        """Yield the events numbered above `after` as server-sent text until the run ends.

        `owner` restricts them to runs of this owner; None allows all.
        """
        yield "retry: 1000\n\n"
        listened = Listened(run_id, owner)
        channel = await self._join(listened)
        try:
            async for text in self._follow(channel, listened, after):
                yield text
        finally:
            self._leave(listened, channel)

    async def _follow(self, channel: Subscription, listened: Listened, after: int) -> AsyncIterator[str]:
        while True:
            changed = channel.changed
            while after < channel.first:
                events = await self._earlier(listened, after)
                if not events:
                    break
                for event in events:
                    yield _text(event)
                after = events[-1].id
            new_texts = channel.texts[max(0, after - channel.first) :]
            for text in new_texts:
                yield text
            after = max(after, channel.last)
            if channel.ended:
                yield END
                return
            if not new_texts and not await _within(changed, KEEP_ALIVE_SECONDS):
                yield ": keep-alive\n\n"

    async def _earlier(self, listened: Listened, after: int) -> list[RunEvent]:
        """Read the events that a listener missed; retry while the database is unavailable."""
        while True:
            try:
                return await run_in_threadpool(self._page, listened, after)
            except SQLAlchemyError as error:
                log.warning("events cannot be read: %s", type(error).__name__)
            await asyncio.sleep(POLL_SECONDS)

    async def _join(self, listened: Listened) -> Subscription:
        if listened not in self._channels:
            run_id = listened.run_id
            last, ended = (await run_in_threadpool(self._look, [run_id])).get(run_id, (0, True))
            # Another listener may have subscribed during the query.
            self._channels.setdefault(listened, Subscription(first=last, ended=ended))
        channel = self._channels[listened]
        channel.listeners += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._fill())
        return channel

    def _leave(self, listened: Listened, channel: Subscription) -> None:
        channel.listeners -= 1
        if not channel.listeners and self._channels.get(listened) is channel:
            del self._channels[listened]

    async def _fill(self) -> None:
        while self._channels:
            try:
                await self._round()
            except SQLAlchemyError as error:
                log.warning("events cannot be read: %s", type(error).__name__)
            await asyncio.sleep(POLL_SECONDS)

    async def _round(self) -> None:
        watched = dict(self._channels)
        looked = await run_in_threadpool(self._look, list({listened.run_id for listened in watched}))
        for listened, channel in watched.items():
            last, ended = looked.get(listened.run_id, (channel.last, True))
            behind = last > channel.last
            events = await run_in_threadpool(self._page, listened, channel.last) if behind else []
            now_ended = ended and channel.last + len(events) >= last
            if events or now_ended != channel.ended:
                channel.add(events, now_ended)

    def _look(self, run_ids: list[str]) -> dict[str, tuple[int, bool]]:
        query = select(RunRow.id, RunRow.last_event, RunRow.state).where(RunRow.id.in_(run_ids))
        with self._database.reading() as session:
            return {run_id: (last, state in TERMINAL) for run_id, last, state in session.execute(query)}

    def _page(self, listened: Listened, after: int) -> list[RunEvent]:
        # All listeners may know what the run works with; this task has the context of the first of them.
        hide(frozenset())
        hide_runs(frozenset())
        with self._database.reading() as session:
            return events_after(session, listened.run_id, after, PAGE, listened.owner)


def _text(event: RunEvent) -> str:
    return f"id: {event.id}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"


async def _within(changed: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(changed.wait(), seconds)
    except TimeoutError:
        return False
    return True
