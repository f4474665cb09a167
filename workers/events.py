"""Numbered event files of one attempt, written one at a time."""

import time

from grafting_core.storage.storage import Storage
from workers.contract import Event, EventBody, RunTicket, attempt_folder, event_path


class EventLog:
    """Appends events; continues the existing numbering, so the driver and rank 0 can alternate."""

    def __init__(self, storage: Storage, ticket: RunTicket) -> None:
        self._storage, self._ticket = storage, ticket
        names = storage.names(f"{attempt_folder(ticket.run_id, ticket.attempt)}/events")
        self._last = int(names[-1].split(".")[0]) if names else 0

    def write(self, body: EventBody) -> None:
        """Write one event; it is durable when this returns."""
        event = Event(
            run_id=self._ticket.run_id,
            attempt=self._ticket.attempt,
            seq=self._last + 1,
            at=time.time(),
            body=body,
        )
        self._storage.write_model(event_path(event.run_id, event.attempt, event.seq), event)
        self._last = event.seq
